//! What the allocator keeps.
#![allow(unsafe_code)]

/// Gives what was freed back to the kernel (malloc_trim(3)): a process that lives for months has no use for what its start
/// has taken. An allocator other than glibc's does so by itself, or never.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and glibc's own locks make it safe at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
