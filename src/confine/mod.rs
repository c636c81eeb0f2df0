//! What a process of ours gives up before it runs what it was made for: capabilities, files and ports, system calls,
//! resources. Imports [`sys`](crate::sys), and the plan where a rule follows from it.

pub mod ceilings;
pub mod landlock;
pub mod privileges;
pub mod seccomp;
