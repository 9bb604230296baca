//! What a started program finds, and what it does not.

use std::fs::{self, Permissions};
use std::io::{PipeWriter, pipe};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::PermissionsExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

fn shell(text: &str, descriptors: Vec<BorrowedFd<'_>>) -> Launched {
    let tolerate = Layer::NAMESPACES.into_iter().collect();
    let arguments = ["sh", "-c", text].map(|a| CString::new(a).unwrap()).to_vec();
    let (program, environment) = ("/bin/sh".into(), Vec::new());
    Launch { program, arguments, environment, descriptors, tolerate: &tolerate, cgroup: None }.start().unwrap()
}

/// A shell that waits for a word, which never comes while the pipe is kept.
fn waiting() -> (Launched, PipeWriter) {
    let (null, (wait, go)) = (File::options().write(true).open("/dev/null").unwrap(), pipe().unwrap());
    (shell("read word", vec![wait.as_fd(), null.as_fd(), null.as_fd()]), go)
}

/// The program's own descriptor and the start channel have low numbers, as those that are given out have.
#[test]
fn any_number_of_descriptors_is_numbered_anew() {
    let (null, (mut from, to)) = (File::options().write(true).open("/dev/null").unwrap(), pipe().unwrap());
    let mut descriptors = vec![null.as_fd(); 24];
    descriptors[1] = to.as_fd();
    let launched = shell("echo ran", descriptors);
    drop(to);
    let mut said = String::new();
    from.read_to_string(&mut said).unwrap();
    launched.reap();
    assert_eq!(said, "ran\n");
}

/// A descriptor that somebody left open when starting the broker is not the program's.
#[test]
#[allow(unsafe_code)]
fn nothing_else_stays_open() {
    let stray = File::open("/dev/null").unwrap().into_raw_fd();
    // SAFETY: integers only.
    assert_eq!(unsafe { libc::fcntl(stray, libc::F_SETFD, 0) }, 0);
    let (launched, go) = waiting();
    let directory = fs::read_dir(format!("/proc/{}/fd", launched.pid)).unwrap();
    let mut open: Vec<_> = directory.map(|entry| entry.unwrap().file_name()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    drop(go);
    launched.reap();
    // SAFETY: made above, and nobody else knows it.
    drop(unsafe { File::from_raw_fd(stray) });
}

/// How large an image of 4 KiB is after a process with this limit has tried all ways to make it larger.
fn size_after_tries(limit: u64) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(4096).unwrap();
    // Started by root, the process is somebody else.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&image, Permissions::from_mode(0o666)).unwrap();
    let path = image.display();
    let tries = [
        format!("printf x | dd bs=1 seek=4095 conv=notrunc of={path}"),
        format!("dd seek=8 count=1 if=/dev/zero conv=notrunc of={path}"),
        format!("truncate -s 4097 {path}"),
        format!("fallocate -l 4098 {path}"),
        format!("fallocate -z -o 4096 -l 200 {path}"),
    ];
    let (null, (wait, mut go)) = (File::options().write(true).open("/dev/null").unwrap(), pipe().unwrap());
    let script = format!("read word; {}", tries.join("; "));
    let launched = shell(&script, vec![wait.as_fd(), null.as_fd(), null.as_fd()]);
    // What was set may be raised again.
    limit_file_size(launched.pid, 1).unwrap();
    limit_file_size(launched.pid, limit).unwrap();
    go.write_all(b"go\n").unwrap();
    let mut ended = [PollFd::new(launched.pidfd.as_fd(), PollFlags::POLLIN)];
    while poll(&mut ended, PollTimeout::NONE) == Err(Errno::EINTR) {}
    launched.reap();
    let content = fs::read(&image).unwrap();
    assert_eq!(content[4095], b'x', "inside it may write");
    content.len()
}

#[test]
fn a_file_is_not_made_larger_than_allowed() {
    assert_eq!(size_after_tries(4096), 4096);
    assert!(size_after_tries(1 << 20) > 4096, "the tries are such as succeed without the limit");
}

/// By the groups of root, or of who started the broker, might be opened what is not the process's business.
#[test]
fn roots_groups_are_laid_down() {
    let root = nix::unistd::geteuid().is_root();
    if root {
        nix::unistd::setgroups(&[nix::unistd::Gid::from_raw(12345)]).unwrap();
    }
    let (launched, go) = waiting();
    let groups = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Groups:")).map(|groups| groups.trim().to_owned())
    };
    let expected = if root { Some(String::new()) } else { groups("self") };
    assert_eq!(groups(&launched.pid.to_string()), expected);
    drop(go);
    launched.reap();
}
