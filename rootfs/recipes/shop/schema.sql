create table if not exists goods (name text primary key, price int not null);
insert into goods values ('apple', 3), ('pear', 4) on conflict do nothing;
