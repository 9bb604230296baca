//! Where a machine may have a control group of its own, by what /proc and the hierarchy say.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, geteuid};

/// How to get one.
pub const REMEDY: &str = "start it in a group that is delegated to it: `systemd-run --user --scope -p Delegate=yes bulkhead \
                          run ...`, or Delegate=yes in its unit; or as root on a host with version 2 groups";
/// How systemd marks a group that it has delegated: the second is for those who cannot see the first.
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// A group below which others can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Our own, delegated to us.
    Delegated(PathBuf),
    /// The root of the hierarchy, which is root's to write.
    Root(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, how) = match self {
            Self::Delegated(path) => (path, "is delegated to this process"),
            Self::Root(path) => (path, "is root's to write"),
        };
        let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        write!(f, "{} {how}, with the controllers: {}", path.display(), controllers.trim())
    }
}

impl Place {
    /// Looks for one; the error says what there is instead.
    pub fn find() -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"));
        let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let (mount, below) = hierarchy(&mounts).ok_or("no hierarchy of version 2 control groups is mounted")?;
        let own =
            own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("this process is in no version 2 group")?;
        let own = own_path(&mount, &below, own);
        if let Some(own) = own.filter(|own| delegated(own) && writable(own)) {
            return Ok(Self::Delegated(own));
        }
        match geteuid().is_root() && writable(&mount) {
            true => Ok(Self::Root(mount)),
            false => Err(format!("no control group below {} is delegated to this process", mount.display())),
        }
    }
}

/// Where version 2 is mounted, and what part of it.
fn hierarchy(mounts: &str) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (kind.split(' ').next() == Some("cgroup2")).then(|| (unescaped(point), unescaped(root)))
    })
}

/// The directory of group `own`, if the mount shows it.
fn own_path(mount: &Path, root: &Path, own: &str) -> Option<PathBuf> {
    let below = Path::new(own).strip_prefix(root).ok()?;
    let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    plain.then(|| mount.join(below))
}

/// mountinfo writes blanks and backslashes as three octal digits (proc_pid_mountinfo(5)).
fn unescaped(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => (bytes.push(code), rest = &behind[3..]),
            None => (bytes.push(*first), rest = behind),
        };
    }
    OsString::from_vec(bytes).into()
}

fn delegated(path: &Path) -> bool {
    MARKS.iter().any(|mark| {
        let mut value = [0; 8];
        rustix::fs::getxattr(path, *mark, &mut value).is_ok_and(|length| &value[..length] == b"1")
    })
}

/// Groups can be made in it, and processes and controllers arranged.
fn writable(path: &Path) -> bool {
    let may = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    may(path) && may(&path.join("cgroup.procs")) && may(&path.join("cgroup.subtree_control"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_among_other_mounts() {
        let mounts = "22 1 0:5 / /proc rw - proc proc rw\n\
                      30 22 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 /part /a\\040b rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        let (mount, root) = hierarchy(mounts).unwrap();
        assert_eq!((mount.to_str(), root.to_str()), (Some("/a b"), Some("/part")));
        assert_eq!(hierarchy("22 1 0:5 / /proc rw - proc proc rw\n"), None);
        assert_eq!(own_path(&mount, &root, "/part/x/y"), Some("/a b/x/y".into()));
        assert_eq!(own_path(&mount, &root, "/elsewhere"), None);
        assert_eq!(own_path(&mount, Path::new("/"), "/../outside"), None);
        assert_eq!(own_path(&mount, Path::new("/"), "/"), Some("/a b/".into()));
    }
}
