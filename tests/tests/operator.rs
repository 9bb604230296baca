//! What an operator types: a configuration file, and the commands that ask a running machine.

#[path = "operator/back_ends.rs"]
mod back_ends;
#[path = "operator/console.rs"]
mod console;
#[path = "operator/limits.rs"]
mod limits;
#[path = "operator/power.rs"]
mod power;
#[path = "operator/service.rs"]
mod service;

use std::error::Error;
use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::Value;
use tests::debian::{Debian, Flavour};
use tests::image::{self, Contents};
use tests::monitor::Monitor;
use tests::operator::{bulkhead, json, stderr};
use tests::processes::{await_child, children};
use tests::workspace;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);

/// What a process has open, as the links in /proc say.
fn open_files(pid: Pid) -> std::io::Result<Vec<Value>> {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))?;
    links.map(|link| Ok(fs::read_link(link?.path())?.to_string_lossy().into_owned().into())).collect()
}

fn sorted(mut names: Vec<Value>) -> Vec<Value> {
    names.sort_by_key(Value::to_string);
    names
}

#[test]
fn a_machine_is_described_by_a_file_and_asked_by_its_name() -> Outcome {
    let (debian, dir) = (Debian::open()?, tempfile::tempdir()?);
    let initrd = image::build(&debian, Contents { disk: Some(Flavour::I686), ..Contents::default() }, dir.path())?;
    for name in ["disk", "shared"] {
        fs::File::create(dir.path().join(name))?.set_len(16 << 20)?;
    }
    let config = dir.path().join("guest.toml");
    let kernel = debian.kernel(Flavour::I686)?;
    let text = format!(
        "kernel = {kernel:?}\ninitrd = {:?}\nappend = \"console=ttyS0\"\nmemory = \"256M\"\n\
         [[disk]]\npath = \"disk\"\nformat = \"raw\"\nserial = \"FROM-A-FILE\"\n\
         [[disk]]\npath = \"shared\"\nformat = \"raw\"\ndma = \"shared\"\n",
        initrd.file_name().unwrap_or_default()
    );
    fs::write(&config, text)?;
    let mut command = Command::new(workspace::bulkhead()?);
    command.arg("run").arg(&config).env("XDG_RUNTIME_DIR", dir.path());
    let mut running = Monitor::bulkhead("translate").launch(command)?;
    running.console.wait_for("bulkhead# ", SILENCE)?;
    running.console.send("cat /sys/block/vda/serial; free -m | grep Mem")?;
    running.console.wait_for("FROM-A-FILE", SILENCE)?;

    let machines = json(&bulkhead(dir.path(), &["ps", "--json"])?)?;
    assert_eq!((&machines[0]["name"], machines.as_array().map(Vec::len)), (&"guest".into(), Some(1)), "{machines}");
    let both = children(running.pid(), "bulkhead-dev-blk");
    let first = both[0];
    let seen = json(&bulkhead(dir.path(), &["inspect", "guest", "--json"])?)?;
    let disk = &seen["processes"][1];
    assert_eq!((&disk["name"], disk["pid"].as_i64()), (&"disk0".into(), Some(first.as_raw().into())), "{seen}");
    assert_eq!((disk["mapped_guest_ram"].as_u64(), disk["capabilities"].as_u64()), (Some(0), Some(0)), "{seen}");
    assert_eq!((disk["seccomp_filters"].as_u64(), disk["lacks"].as_array().map(Vec::len)), (Some(2), Some(0)));
    assert_eq!(disk["namespaces"].as_array().map(Vec::len), Some(7), "{seen}");
    let listed = disk["descriptors"].as_object().map(|open| open.values().cloned().collect()).unwrap_or_default();
    assert_eq!(sorted(listed), sorted(open_files(first)?), "inspect shows what /proc shows");
    assert!(!fs::read_to_string(format!("/proc/{first}/maps"))?.contains("guest-ram"), "no guest RAM is mapped");
    assert_eq!(seen["processes"][0]["mapped_guest_ram"].as_u64().map(|bytes| bytes >= 256 << 20), Some(true), "{seen}");
    let shown = bulkhead(dir.path(), &["inspect", "guest"])?;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("mapped guest RAM   0 bytes"), "{shown:?}");
    let shared = &seen["processes"][2];
    assert_eq!(
        (shared["mapped_guest_ram"].as_u64(), &shared["given_guest_ram"]),
        (Some(256 << 20), &true.into()),
        "{seen}"
    );
    assert_eq!(
        (shared["lacks"].as_array().map(Vec::len), &disk["given_guest_ram"]),
        (Some(0), &false.into()),
        "{seen}"
    );
    assert!(String::from_utf8_lossy(&shown.stdout).contains("268435456 bytes, given to it by dma=shared"), "{shown:?}");

    let restarted = bulkhead(dir.path(), &["restart", "guest", "disk0"])?;
    assert!(restarted.status.success(), "{}", stderr(&restarted));
    let second = await_child(running.pid(), "bulkhead-dev-blk", &both, SILENCE)?;
    assert_ne!(second, first);
    running.console.send("dd if=/dev/zero of=/dev/vda bs=64k count=16 conv=fsync && echo it \"carries on\"")?;
    running.console.wait_for("it carries on", SILENCE)?;
    // An image that the operator makes larger is larger for the guest, to its last byte.
    fs::OpenOptions::new().write(true).open(dir.path().join("disk"))?.set_len(24 << 20)?;
    let resized = bulkhead(dir.path(), &["resize", "guest", "disk0"])?;
    assert!(resized.status.success(), "{}", stderr(&resized));
    running.console.send("until [ $(cat /sys/block/vda/size) = 49152 ]; do sleep 1; done; echo it is \"larger\"")?;
    running.console.wait_for("it is larger", SILENCE)?;
    running
        .console
        .send("dd if=/bin/busybox of=/dev/vda bs=64k seek=383 count=1 oflag=direct && echo its end is \"there\"")?;
    running.console.wait_for("its end is there", SILENCE)?;
    assert_eq!(fs::read(dir.path().join("disk"))?[383 << 16..].len(), 1 << 16);
    assert!(fs::read(dir.path().join("disk"))?[383 << 16..] == fs::read(debian.busybox()?)?[..1 << 16]);

    let refused = bulkhead(dir.path(), &["restart", "guest", "disk7"])?;
    assert!(stderr(&refused).contains("no device called disk7") && refused.status.code() == Some(2), "{refused:?}");

    // The guest has nobody who listens to its power button: the second stop is final.
    for _ in 0..2 {
        assert!(bulkhead(dir.path(), &["stop", "guest"])?.status.success());
    }
    assert_eq!(running.wait(SILENCE)?.code(), Some(10), "{}", running.stderr());
    let gone = bulkhead(dir.path(), &["inspect", "guest"])?;
    assert!(stderr(&gone).contains("no machine called guest"), "{gone:?}");
    let left = fs::read_dir(dir.path().join("bulkhead"))?.count();
    assert_eq!(left, 0, "no socket is left");
    Ok(())
}

#[test]
fn what_is_wrong_in_a_file_is_shown_with_its_place() -> Outcome {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("guest.toml");
    fs::write(&config, "kernel = \"/boot/vmlinuz\"\nmemroy = \"1G\"\n")?;
    let output = bulkhead(dir.path(), &["run", &config.display().to_string()])?;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("line 2") && said.contains("memroy") && said.contains("guest.toml"), "{said}");
    Ok(())
}

/// This host is one where the other tests pass, so it has every layer.
#[test]
fn the_doctor_finds_every_layer() -> Outcome {
    let dir = tempfile::tempdir()?;
    let output = bulkhead(dir.path(), &["doctor", "--json"])?;
    let layers = json(&output)?;
    // What limits need is no layer, and few hosts of tests have it.
    let all = || layers.as_object().into_iter().flatten().filter(|(name, _)| *name != "control-groups");
    let missing: Vec<_> = all().filter(|(_, layer)| layer["present"] != true).collect();
    assert!(missing.is_empty() && all().count() == 15 && layers["control-groups"]["present"].is_boolean(), "{layers}");
    assert_eq!(output.status.code(), Some(0));
    let profile = bulkhead(dir.path(), &["policy", "show", "dev-blk"])?;
    assert!(String::from_utf8_lossy(&profile.stdout).contains("role = \"dev-blk\""), "{profile:?}");
    Ok(())
}
