//! A machine as a service: what its manager is told, what its log says, and what is made for those who install it.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use serde_json::Value;
use tests::operator::{bulkhead, command, echo_kernel, ended, stderr};

use crate::{Outcome, SILENCE};

/// Its manager hears that it runs, that it lives, and that it ends, in this order; whoever follows its log sees what
/// happens, to the last.
#[test]
fn a_manager_is_told_and_a_log_is_followed_to_the_end() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (dir, socket) = (dir.path(), dir.path().join("notify"));
    let manager = UnixDatagram::bind(&socket)?;
    manager.set_read_timeout(Some(SILENCE))?;
    let hear = || -> Result<String, std::io::Error> {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let kernel = echo_kernel(dir)?.display().to_string();
    std::fs::File::create(dir.join("disk"))?.set_len(1 << 20)?;
    let disk = format!("path={},format=raw", dir.join("disk").display());
    let mut run = command(dir, &["run", "--name", "served", "--console", "none", "--memory", "16M", "--disk", &disk])?;
    run.args(["--kernel", &kernel]).env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let mut machine = run.stdin(Stdio::null()).spawn()?;
    // Signs of life may come first: starting takes its time.
    let mut heard = hear()?;
    while heard == "WATCHDOG=1" {
        heard = hear()?;
    }
    assert!(heard.starts_with("READY=1\nSTATUS=served runs on engine "), "{heard}");
    assert_eq!((hear()?, hear()?), ("WATCHDOG=1".into(), "WATCHDOG=1".into()));

    let mut follower = command(dir, &["logs", "served", "--follow", "--json"])?.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(follower.stdout.take().ok_or("no pipe")?).lines();
    let mut events = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap_or_default()).unwrap_or_default());
    let served = |event: &Value| event["text"].as_str().is_some_and(|text| text.contains("is confined and serves"));
    let first = events.find(served).ok_or("the log ended")?;
    assert_eq!((&first["level"], &first["who"]), (&"INFO".into(), &"broker".into()), "{first}");
    let time = first["time"].as_str().unwrap_or_default();
    assert!(time.len() == "2026-11-21T18:13:04.123456Z".len() && time.ends_with('Z'), "{time}");
    assert!(bulkhead(dir, &["restart", "served", "disk0"])?.status.success());
    events.find(served).ok_or("the log ended")?;
    // Not followed: what there is, as text.
    let shown = bulkhead(dir, &["logs", "served"])?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains(" INFO broker: disk0: process "), "{text}");

    for _ in 0..2 {
        assert!(bulkhead(dir, &["stop", "served"])?.status.success());
    }
    heard = hear()?;
    while heard == "WATCHDOG=1" {
        heard = hear()?;
    }
    assert!(heard.starts_with("STOPPING=1\n"), "{heard}");
    assert_eq!(ended(&mut machine, SILENCE)?.code(), Some(10));
    let last = events.last().ok_or("the log ended")?;
    assert_eq!(last["text"], "stopped by the operator");
    assert_eq!(ended(&mut follower, SILENCE)?.code(), Some(0));
    Ok(())
}

#[test]
fn completions_and_pages_are_made() -> Outcome {
    let dir = tempfile::tempdir()?;
    for shell in ["bash", "zsh", "fish"] {
        let made = bulkhead(dir.path(), &["completions", shell])?;
        let text = String::from_utf8_lossy(&made.stdout);
        for command in ["run", "ps", "inspect", "restart", "logs", "console", "stop", "doctor", "policy"] {
            assert!(text.contains(command), "{shell}: {command}: {made:?}");
        }
    }
    let pages = dir.path().join("man");
    let written = bulkhead(dir.path(), &["man", &pages.display().to_string()])?;
    assert!(written.status.code() == Some(4) && stderr(&written).contains("does the directory exist"), "{written:?}");
    std::fs::create_dir(&pages)?;
    assert!(bulkhead(dir.path(), &["man", &pages.display().to_string()])?.status.success());
    for page in ["bulkhead.1", "bulkhead-run.1", "bulkhead-logs.1", "bulkhead-policy-show.1"] {
        assert!(pages.join(page).is_file(), "{page}");
    }
    let page = String::from_utf8_lossy(&bulkhead(dir.path(), &["man"])?.stdout).into_owned();
    assert!(page.contains(".TH") && page.contains("console"), "{page}");
    Ok(())
}

/// A machine that is gone is no machine to ask.
#[test]
fn commands_name_the_machine_that_is_not_there() -> Outcome {
    let dir = tempfile::tempdir()?;
    for arguments in [&["logs", "nobody"][..], &["logs", "nobody", "-f"], &["console", "nobody"]] {
        let output = bulkhead(dir.path(), arguments)?;
        assert!(output.status.code() == Some(4) && stderr(&output).contains("called nobody"), "{output:?}");
    }
    Ok(())
}
