//! The disk process as a whole, driven through its real socket: what survives its death, who may use an image, and what
//! it does when host or front end misbehave.

#[path = "daemon/front.rs"]
mod front;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use front::{DATA, Front, Outcome};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

const DAEMON: &str = env!("CARGO_BIN_EXE_bulkhead-dev-blk");
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const OK: u8 = 0;
const IOERR: u8 = 1;

/// A running disk process; dropping it kills it.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(image: &Path, more: &[&str]) -> Outcome<Self> {
        Self::start_by(Command::new(DAEMON), image, &[&["--format", "raw"], more].concat())
    }

    /// `command` is the program, or what ends by starting it.
    fn start_by(mut command: Command, image: &Path, more: &[&str]) -> Outcome<Self> {
        let socket = image.with_extension("sock");
        command.arg("--socket-path").arg(&socket).arg("--path").arg(image).args(more);
        Self::start_listening(command, socket)
    }

    /// Waits until it listens.
    fn start_listening(mut command: Command, socket: PathBuf) -> Outcome<Self> {
        let mut daemon = Self { child: command.stderr(Stdio::piped()).spawn()?, socket };
        while !daemon.socket.exists() {
            if daemon.child.try_wait()?.is_some() {
                return Err(daemon.said()?.into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    fn connect(&self, queues: usize) -> Outcome<Front> {
        Front::connect(&self.socket, queues)
    }

    /// Kills it without a chance to do anything, and waits until it is gone.
    fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(fs::remove_file(&self.socket)?)
    }

    /// What it has written to standard error. It must have ended.
    fn said(&mut self) -> Outcome<String> {
        self.child.wait()?;
        let mut text = String::new();
        self.child.stderr.take().ok_or("read already")?.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn image(dir: &Path, bytes: u64) -> Outcome<PathBuf> {
    let path = dir.join("image");
    fs::File::create(&path)?.set_len(bytes)?;
    Ok(path)
}

fn fill(front: &Front, byte: u8, bytes: usize) -> Outcome {
    Ok(front.memory.write_slice(&vec![byte; bytes], GuestAddress(DATA))?)
}

#[test]
fn completed_writes_survive_sigkill() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = image(dir.path(), 4 << 20)?;
    let mut expected = vec![0; 4 << 20];
    for (round, cache) in ["writeback", "none", "unsafe", "writeback", "none", "unsafe"].into_iter().enumerate() {
        let mut daemon = Daemon::start(&image, &["--cache", cache])?;
        let mut front = daemon.connect(1)?;
        for step in 0..40 {
            let (sector, byte) = ((round * 1237 + step * 97) % 8000, (round * 40 + step) as u8);
            fill(&front, byte, 4096)?;
            assert_eq!(front.request(0, OUT, sector as u64, 4096)?, OK);
            expected[sector * 512..][..4096].fill(byte);
        }
        if round % 2 == 0 {
            assert_eq!(front.request(0, FLUSH, 0, 0)?, OK);
        }
        daemon.kill()?;
        assert!(fs::read(&image)? == expected, "round {round}, {cache}");
    }
    Ok(())
}

/// Whether qemu-img is installed; says so where it is not.
fn qemu_img() -> bool {
    let found = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: qemu-img is not installed");
    }
    found
}

/// Runs qemu-img, which must succeed.
fn qemu_img_run(arguments: &[&str], image: &Path, more: &[&str]) -> Outcome {
    let output = Command::new("qemu-img").args(arguments).arg(image).args(more).output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    // `check` answers 3 for leaked clusters alone: space that is lost, not data.
    if output.status.success() || (arguments[0] == "check" && output.status.code() == Some(3)) {
        return Ok(());
    }
    Err(format!("qemu-img {arguments:?}: {said}").into())
}

#[test]
fn completed_qcow2_writes_survive_sigkill() -> Outcome {
    if !qemu_img() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("image");
    qemu_img_run(&["create", "-q", "-f", "qcow2"], &image, &["64M"])?;
    let mut expected = vec![0; 64 << 20];
    for round in 0..6 {
        let mut daemon = Daemon::start_by(Command::new(DAEMON), &image, &["--format", "qcow2"])?;
        let mut front = daemon.connect(1)?;
        assert_eq!(front.capacity()?, (64 << 20) / 512);
        for step in 0..40 {
            // All over the disk, so that most writes need a new cluster; some reach over the end of one.
            let (sector, byte) = ((round * 40_009 + step * 3251) % 131_000, (round * 40 + step + 1) as u8);
            fill(&front, byte, 8192)?;
            assert_eq!(front.request(0, OUT, sector as u64, 8192)?, OK);
            expected[sector * 512..][..8192].fill(byte);
        }
        // A read through the image itself, and a discard that takes whole clusters away.
        assert_eq!(front.request(0, IN, 40, 8192)?, OK);
        let mut found = vec![0; 8192];
        front.memory.read_slice(&mut found, GuestAddress(DATA))?;
        assert!(found == expected[40 * 512..][..8192]);
        front.memory.write_slice(&[0; 16], GuestAddress(DATA))?;
        front.memory.write_obj(round as u64 * 4096, GuestAddress(DATA))?;
        front.memory.write_obj(1024u32, GuestAddress(DATA + 8))?;
        assert_eq!(front.request(0, 13, 0, 16)?, OK);
        expected[round * (2 << 20)..][..512 << 10].fill(0);
        daemon.kill()?;
        qemu_img_run(&["check", "-q", "-f", "qcow2"], &image, &[])?;
        let raw = dir.path().join("raw");
        qemu_img_run(&["convert", "-f", "qcow2", "-O", "raw"], &image, &[raw.to_str().ok_or("path")?])?;
        assert!(fs::read(raw)? == expected, "round {round}");
    }
    Ok(())
}

#[test]
fn backing_files_are_off_unless_allowed() -> Outcome {
    if !qemu_img() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    fs::write(at("base"), vec![0x5a; 1 << 20])?;
    qemu_img_run(&["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw"], &at("image"), &[])?;
    let start =
        |more: &[&str]| Daemon::start_by(Command::new(DAEMON), &at("image"), &[&["--format", "qcow2"], more].concat());
    let refused = start(&[]).err().ok_or("it was opened")?.to_string();
    assert!(refused.contains("--allow-backing"), "{refused}");
    let mut daemon = start(&["--allow-backing"])?;
    let mut front = daemon.connect(1)?;
    assert_eq!(front.request(0, IN, 100, 512)?, OK);
    assert_eq!(front.memory.read_obj::<u32>(GuestAddress(DATA))?, 0x5a5a_5a5a);
    fill(&front, 1, 512)?;
    assert_eq!(front.request(0, OUT, 100, 512)?, OK);
    daemon.kill()?;
    assert!(fs::read(at("base"))? == vec![0x5a; 1 << 20], "the backing file was written");
    // An image that does not say what its backing file is: content, which a guest may write, would decide.
    // (qemu-img of today insists on saying so: the header extension that says it is given an unknown type instead.)
    let mut bytes = fs::read(at("image"))?;
    let extension = bytes.windows(4).position(|four| four == [0xe2, 0x79, 0x2a, 0xca]).ok_or("no format extension")?;
    bytes[extension..extension + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    fs::write(at("image"), bytes)?;
    let refused = start(&["--allow-backing"]).err().ok_or("it was opened")?.to_string();
    assert!(refused.contains("does not state its backing file's format"), "{refused}");
    Ok(())
}

#[test]
fn an_image_has_one_writer_or_many_readers() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = image(dir.path(), 1 << 20)?;
    let second = |mode: &[&str]| {
        let mut command = Command::new(DAEMON);
        command.args(["--format", "raw", "--path"]).arg(&image).arg("--socket-path").arg(dir.path().join("second"));
        command.args(mode).output()
    };
    let mut writer = Daemon::start(&image, &[])?;
    for mode in [&[][..], &["--read-only"]] {
        let refused = second(mode)?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(4), "{text}");
        assert!(text.contains("is in use: another process writes it"), "{text}");
    }
    writer.kill()?;
    let reader = Daemon::start(&image, &["--read-only"])?;
    let mut front = reader.connect(1)?;
    assert_eq!(second(&[])?.status.code(), Some(4));
    let other = dir.path().join("other");
    fs::hard_link(&image, &other)?;
    let other = Daemon::start(&other, &["--read-only"])?;
    assert_eq!(other.connect(1)?.request(0, IN, 0, 512)?, OK);
    assert_eq!(front.request(0, OUT, 0, 512)?, IOERR);
    Ok(())
}

#[test]
fn a_full_host_disk_is_an_error_of_the_guest_and_a_message_to_the_operator() -> Outcome {
    let dir = tempfile::tempdir()?;
    // A file system of 1 MiB in a mount namespace of the daemon's own; the socket lies outside it.
    let small = dir.path().join("small");
    fs::create_dir(&small)?;
    let script = r#"mount -t tmpfs -o size=1m none "$0" && truncate -s 8M "$0/image" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(&small);
    command.arg(DAEMON).args(["--blk-file"]).arg(small.join("image"));
    let socket = dir.path().join("socket");
    command.args(["--format", "raw", "--socket-path"]).arg(&socket);
    let mut daemon = Daemon::start_listening(command, socket)?;
    let mut front = daemon.connect(1)?;
    fill(&front, 7, 65_536)?;
    let statuses: Vec<_> = (0..64).map(|step| front.request(0, OUT, step * 128, 65_536)).collect::<Result<_, _>>()?;
    assert_eq!(statuses[..8], [OK; 8]);
    assert!(statuses.contains(&IOERR));
    // What was stored can be read, and space that is given back can be used again.
    fill(&front, 0, 65_536)?;
    assert_eq!(front.request(0, IN, 128, 65_536)?, OK);
    assert_eq!(front.memory.read_obj::<u64>(GuestAddress(DATA + 65_528))?, 0x0707_0707_0707_0707);
    front.memory.write_slice(&[0; 16], GuestAddress(DATA))?;
    front.memory.write_obj(1024u32, GuestAddress(DATA + 8))?;
    assert_eq!(front.request(0, 11, 0, 16)?, OK);
    assert_eq!(front.request(0, OUT, 8000, 65_536)?, OK);
    daemon.kill()?;
    let text = daemon.said()?;
    assert!(text.contains("No space left on device") && text.contains("free space there"), "{text}");
    assert_eq!(text.matches("ERROR").count(), 1, "one message, not one for each request: {text}");
    Ok(())
}

#[test]
fn a_broken_queue_is_reported_and_stops_alone() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = image(dir.path(), 1 << 20)?;
    let daemon = Daemon::start(&image, &["--queues", "2"])?;
    let mut front = daemon.connect(2)?;
    assert_eq!(front.request(0, IN, 0, 512)?, OK);
    // A loop without an end.
    front.offer(0, &[(0, 16, 1, 1), (DATA, 512, 3, 1)])?;
    front.wait_for_error(0)?;
    assert_eq!(front.request(1, OUT, 5, 512)?, OK);
    front.protocol.get_vring_base(0)?;
    front.start(0)?;
    assert_eq!(front.request(0, IN, 5, 512)?, OK);
    // The next front end finds the disk as good as new.
    drop(front);
    assert_eq!(daemon.connect(1)?.request(0, IN, 0, 512)?, OK);
    Ok(())
}

#[test]
fn a_resize_is_announced() -> Outcome {
    let dir = tempfile::tempdir()?;
    let image = image(dir.path(), 1 << 20)?;
    let (control, theirs) = UnixStream::pair()?;
    let mut command = Command::new("sh");
    // A shell's redirection makes a descriptor that is inherited.
    command.args(["-c", r#"exec "$@" 9<&0"#, "sh", DAEMON]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let daemon = Daemon::start_by(command, &image, &["--format", "raw", "--control-fd", "9"])?;
    let mut answers = BufReader::new(control.try_clone()?);
    let mut ask = |text: &str| -> Outcome<String> {
        (&control).write_all(text.as_bytes())?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        Ok(line)
    };
    assert_eq!(ask("ping\n")?, "pong\n");
    assert_eq!(ask("format /\n")?, "error unknown command\n");
    let mut front = daemon.connect(1)?;
    assert_eq!(front.capacity()?, 2048);
    let (mut channel, theirs) = UnixStream::pair()?;
    front.protocol.set_backend_request_fd(&theirs.as_raw_fd())?;
    assert_eq!(front.capacity()?, 2048, "the channel has arrived");
    assert_eq!(front.request(0, IN, 2048, 512)?, IOERR);
    fs::File::options().write(true).open(&image)?.set_len(2 << 20)?;
    assert_eq!(ask("resize\n")?, "sectors 4096 announced true\n");
    let mut message = [0; 12];
    channel.read_exact(&mut message)?;
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(front.capacity()?, 4096);
    assert_eq!(front.request(0, IN, 2048, 512)?, OK);
    Ok(())
}

#[test]
fn wrong_command_lines_and_images_are_explained() -> Outcome {
    let dir = tempfile::tempdir()?;
    let odd = dir.path().join("odd");
    fs::write(&odd, [0; 1000])?;
    let socket = dir.path().join("socket");
    let run = |arguments: &[&str]| -> Outcome<(Option<i32>, String)> {
        let mut command = Command::new(DAEMON);
        let output = command.args(arguments).arg("--socket-path").arg(&socket).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let odd = odd.to_str().ok_or("path")?;
    for (arguments, code, text) in [
        (&["--path", odd][..], 2, "--format"),
        (&["--format", "raw"], 2, "--path"),
        (&["--format", "raw", "--path", "/nowhere/image"], 4, "No such file"),
        (&["--format", "raw", "--path", "/dev/null"], 4, "neither a regular file nor a block device"),
        (&["--format", "raw", "--path", odd, "--cache", "none"], 4, "truncate -s"),
        (&["--format", "raw", "--path", odd, "--serial", "more than twenty letters"], 4, "20 printable"),
        (&["--format", "raw", "--disk-fd", "77"], 4, "was not inherited"),
    ] {
        let (found, said) = run(arguments)?;
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(text), "{arguments:?}: {said}");
    }
    Ok(())
}
