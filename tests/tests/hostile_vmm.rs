//! A vmm that a guest took over can end its machine. It cannot keep its broker from its operator, nor write to the terminal.

use std::error::Error;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tests::processes::send;
use tests::workspace;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(180);

/// `bulkhead run` with the hostile vmm, which is told `what`.
fn started(what: &str, options: &[&str]) -> Result<(Child, tempfile::TempDir), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let programs = dir.path().join("programs");
    fs::create_dir(&programs)?;
    fs::copy(workspace::bulkhead()?, programs.join("bulkhead"))?;
    fs::copy(env!("CARGO_BIN_EXE_hostile_vmm"), programs.join("bulkhead-vmm"))?;
    fs::write(dir.path().join("kernel"), [0; 4096])?;
    let mut command = Command::new(programs.join("bulkhead"));
    command.arg("run").arg("--kernel").arg(dir.path().join("kernel")).args(["--append", what, "--memory", "16M"]);
    command.args(["--console", "none", "--stats"]).args(options).env("XDG_RUNTIME_DIR", dir.path());
    command.env("BULKHEAD_LOG", "debug");
    Ok((command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?, dir))
}

/// Waits for the end, reading what it says. `meanwhile` is called now and then.
fn ended(mut child: Child, mut meanwhile: impl FnMut(&Child)) -> Result<(Option<i32>, String), Box<dyn Error>> {
    let mut stderr = child.stderr.take().ok_or("no standard error")?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let until = Instant::now() + SILENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            break None;
        }
        meanwhile(&child);
        std::thread::sleep(Duration::from_millis(200));
    };
    let text = reader.join().map_err(|_| "the reader panicked")??;
    Ok((status.ok_or_else(|| format!("the broker hangs: {text}"))?.code(), text))
}

fn run(what: &str, options: &[&str]) -> Result<(Option<i32>, String), Box<dyn Error>> {
    let (child, _dir) = started(what, options)?;
    ended(child, |_| {})
}

#[test]
fn a_flood_of_messages_does_not_keep_the_broker_from_signals() -> Outcome {
    let (child, _dir) = started("flood", &[])?;
    let begun = Instant::now();
    let (code, text) = ended(child, |child| {
        if begun.elapsed() > Duration::from_secs(2) {
            send(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        }
    })?;
    assert_eq!(code, Some(10), "{text}");
    assert!(text.contains("it says too much"), "{text}");
    assert!(text.len() < 1 << 20, "{} bytes of log", text.len());
    Ok(())
}

/// Nobody reads standard error: far more than a pipe holds is logged, and the broker answers its operator all the same.
#[test]
fn a_log_that_nobody_reads_does_not_stop_the_broker() -> Outcome {
    let (mut child, dir) = started("babble", &["--name", "babble"])?;
    let ask = |arguments: &[&str]| -> Result<std::process::Output, Box<dyn Error>> {
        let mut command = Command::new(dir.path().join("programs/bulkhead"));
        Ok(command.args(arguments).env("XDG_RUNTIME_DIR", dir.path()).output()?)
    };
    // A pipe holds 64 events of this length. Then many more have been taken, and dropped.
    let logged = || ask(&["logs", "babble"]).map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let until = Instant::now() + SILENCE;
    while logged()?.matches("vmm: xxx").count() < 150 {
        assert!(Instant::now() < until, "the broker stands still");
        std::thread::sleep(Duration::from_millis(100));
    }
    // A vmm that hears nothing is stopped by force.
    for _ in 0..2 {
        assert!(ask(&["stop", "babble"])?.status.success());
    }
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        assert!(Instant::now() < until, "the broker does not end");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(status.code(), Some(10));
    Ok(())
}

#[test]
fn a_vmm_that_said_its_last_is_not_waited_for() -> Outcome {
    let (code, text) = run("stay", &[])?;
    assert_eq!(code, Some(0), "what it reported holds: {text}");
    let (code, text) = run("hang-up", &[])?;
    assert_eq!(code, Some(12), "{text}");
    Ok(())
}

#[test]
fn nothing_that_it_says_is_obeyed_by_a_terminal() -> Outcome {
    let (code, text) = run("escape", &[])?;
    assert_eq!(code, Some(6), "{text}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    // The log event, the protocol, the reset's cause, standard error, the outcome, the counter's name.
    assert_eq!(text.matches(r"\u{1b}[2J").count(), 6, "{text}");
    Ok(())
}

#[test]
fn its_last_words_are_shown_to_the_last() -> Outcome {
    let (code, text) = run("talk", &[])?;
    assert_eq!(code, Some(12), "{text}");
    assert!(text.contains("line 49 ") && text.contains("the very last words"), "{text}");
    assert!(!text.contains("broke its profile"), "a debug build's library asks before it closes: {text}");
    Ok(())
}

#[test]
fn a_layer_that_it_says_it_lacks_must_be_tolerated() -> Outcome {
    let (code, text) = run("stay", &["--cpu", "max,-avx2"])?;
    assert_eq!(code, Some(4), "{text}");
    assert!(text.contains("--allow-missing descriptors"), "{text}");
    Ok(())
}
