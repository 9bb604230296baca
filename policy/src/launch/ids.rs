//! The id map of a new user namespace: one number inside, 0, and one outside.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::unistd::{Pid, geteuid};

/// First of the ids that nobody uses: systemd's table of id ranges (UIDS-GIDS.md) leaves 0x70000000 to 0x7fffffff
/// unused. A process's own number there is this plus its process id, which is below 2^22.
const UNUSED: u32 = 0x7000_0000;
/// nobody and nogroup, where the range above is not ours to give, as in a container.
const NOBODY: u32 = 65534;

/// Writes the maps of `pid`, which waits for them.
pub fn map(pid: Pid) -> nix::Result<()> {
    let outside = if geteuid().is_root() { foreign(pid) } else { None };
    let (uid, gid) = outside.map_or((geteuid().as_raw(), nix::unistd::getegid().as_raw()), |id| (id, id));
    // A group map may be written without privilege only after setgroups is denied (user_namespaces(7)), and with it only
    // while it is not can the process lay down the broker's other groups.
    if !geteuid().is_root() {
        write(pid, "setgroups", "deny")?;
    }
    write(pid, "gid_map", &format!("0 {gid} 1"))?;
    write(pid, "uid_map", &format!("0 {uid} 1"))
}

/// An id outside that is nobody's, if our own namespace has one.
fn foreign(pid: Pid) -> Option<u32> {
    let own = UNUSED + pid.as_raw() as u32;
    let (uids, gids) = (fs::read_to_string("/proc/self/uid_map").ok()?, fs::read_to_string("/proc/self/gid_map").ok()?);
    [own, NOBODY].into_iter().find(|id| covers(&uids, *id) && covers(&gids, *id))
}

/// True if a map, as /proc shows it, has `id` inside.
fn covers(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(id)))
    })
}

fn write(pid: Pid, file: &str, text: &str) -> nix::Result<()> {
    let written = fs::write(format!("/proc/{pid}/{file}"), text);
    written.map_err(|e: io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_the_kernel_writes_them() {
        let container = "         0     100000      65536\n";
        assert!(covers(container, 0) && covers(container, 65535) && !covers(container, 65536));
        assert!(covers("         0          0 4294967295\n", UNUSED + 4_000_000));
        assert!(!covers("", 0) && !covers("garbage", 0));
    }
}
