CREATE USER IF NOT EXISTS 'app'@'%' IDENTIFIED BY 'change-me';
GRANT ALL ON *.* TO 'app'@'%';
