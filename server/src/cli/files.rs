//! Open files: a socket is one.

use std::io;

/// Raises the limit of open files to what is wanted, or as far as it may be raised, and says where it is now. The
/// kernel's table of files grows at once to what is wanted of it.
///
/// Left to itself it doubles whenever it is full, and whatever opens a file waits for that, in a process of more than
/// one thread 10 to 25 ms each time (Linux: `expand_fdtable` waits for all processors): a node that takes 5,000
/// sockets would accept nobody for a quarter of the time. The table costs 8 bytes of the kernel's for a file.
pub fn raise_limit(wanted: u64) -> io::Result<u64> {
    let limit = rlimit::increase_nofile_limit(wanted)?;
    #[cfg(target_os = "linux")]
    grow_table(wanted.min(limit));
    Ok(limit)
}

/// Opens a file with the highest number, and closes it. Where that cannot be, the table grows as it is used.
#[cfg(target_os = "linux")]
fn grow_table(files: u64) {
    let last = i32::try_from(files.saturating_sub(1)).unwrap_or(i32::MAX);
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(io::stderr(), last) {
        tracing::debug!(%error, "the table of open files stays small");
    }
}
