//! Somebody else's back end that is there and does nothing: a machine is not started with it, nor kept waiting.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::Output;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, listen, socket};
use tests::operator::{bulkhead, echo_kernel, stderr};

use crate::Outcome;

fn started_with(dir: &std::path::Path) -> Result<Output, Box<dyn std::error::Error>> {
    let kernel = echo_kernel(dir)?.display().to_string();
    let disk = format!("socket={}", dir.join("socket").display());
    let arguments = ["run", "--console", "none", "--memory", "16M", "--vhost-user-blk", &disk, "--kernel", &kernel];
    Ok(bulkhead(dir, &arguments)?)
}

#[test]
fn a_back_end_that_connects_and_never_answers_is_given_up() -> Outcome {
    let dir = tempfile::tempdir()?;
    let _listener = UnixListener::bind(dir.path().join("socket"))?;
    let refused = started_with(dir.path())?;
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(stderr(&refused).contains("disk0") && stderr(&refused).contains("did not answer in time"), "{refused:?}");
    Ok(())
}

#[test]
fn a_back_end_that_takes_no_connection_is_given_up() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    // The library lets more wait than a user may have descriptors.
    listen(&listener, Backlog::new(1)?)?;
    let mut waiting = Vec::new();
    loop {
        let one =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        if connect(one.as_raw_fd(), &UnixAddr::new(&path)?).is_err() {
            break;
        }
        waiting.push(one);
    }
    let refused = started_with(dir.path())?;
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(stderr(&refused).contains("disk0") && stderr(&refused).contains("it hangs"), "{refused:?}");
    Ok(())
}
