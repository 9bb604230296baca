//! What a started program finds, and what it does not.

use std::fs;
use std::io::{PipeWriter, pipe};
use std::os::fd::{FromRawFd, IntoRawFd};

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

/// However it tries: by writing, by resizing or by allocating.
#[test]
fn a_file_is_not_made_larger_than_allowed() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4096).unwrap();
    let (null, (wait, mut go)) = (File::options().write(true).open("/dev/null").unwrap(), pipe().unwrap());
    let path = image.path().display();
    let tries = [
        "truncate -s 4097",
        "fallocate -l 4097",
        "fallocate -z -o 4000 -l 100",
        "dd seek=8 count=1 if=/dev/zero conv=notrunc of=",
    ];
    let tries: Vec<_> =
        tries.iter().map(|tried| format!("{tried}{}{path}", if tried.ends_with('=') { "" } else { " " })).collect();
    let inside = format!("printf x | dd of={path} bs=1 seek=4095 conv=notrunc");
    let launched =
        shell(&format!("read word; {inside}; {}", tries.join("; ")), vec![wait.as_fd(), null.as_fd(), null.as_fd()]);
    limit_file_size(launched.pid, 4096).unwrap();
    go.write_all(b"go\n").unwrap();
    launched.reap();
    let content = fs::read(image.path()).unwrap();
    assert_eq!((content.len(), content[4095]), (4096, b'x'));
    // It may be raised again.
    let (launched, go) = waiting();
    limit_file_size(launched.pid, 1).unwrap();
    limit_file_size(launched.pid, 1 << 40).unwrap();
    drop(go);
    launched.reap();
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
