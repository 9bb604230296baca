//! Debian's own virtio driver uses a network card of Bulkhead, whose process can make no socket: the guest reaches what the
//! broker dials for it, and that is what policy allows. Everything that it reaches is made by the test.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use policy::profile::Profile;
use policy::verify::Verified;
use policy::{Layers, Role};
use tests::console::Console;
use tests::debian::{Debian, Flavour};
use tests::disks::pattern;
use tests::image::{self, Contents};
use tests::monitor::{Guest, Monitor};
use tests::net::{Web, resolver, sha256};
use tests::processes::{alive, await_child, children, send};
use tests::trace::Traced;

type Outcome = Result<(), Box<dyn Error>>;

/// Nothing for so long means stuck, even on a busy machine.
const SILENCE: Duration = Duration::from_secs(600);
const CARD: &str = "bulkhead-dev-net";
/// What the guest fetches.
const FILE: usize = 24 << 20;
/// Times that a card's process is killed.
const KILLS: u32 = 8;

/// Everything a card's process holds while it serves: what it was started with, its clock among it; the listener and the
/// channel for flows; the connection, which the vhost-user library keeps twice; the bounce region; of each of two queues kick,
/// which is a socket, and call; what waits for flows; and what its worker waits on, with two events that end it, each open
/// twice.
fn card_holds() -> Vec<&'static str> {
    let mut holds = vec!["/dev/null", "/dev/null", "pipe:", "anon_inode:[timerfd]", "/memfd:bounce"];
    holds.extend(["socket:"; 7]);
    holds.extend(["anon_inode:[eventpoll]"; 2]);
    holds.extend(["anon_inode:[eventfd]"; 6]);
    holds
}

fn guest(dir: &Path, net: &str) -> Result<Guest, Box<dyn Error>> {
    let debian = Debian::open()?;
    let initrd = image::build(&debian, Contents { net: Some(Flavour::I686), ..Contents::default() }, dir)?;
    let mut guest = Guest { memory: 256, ..Guest::linux(debian.kernel(Flavour::I686)?, initrd) };
    guest.options = vec!["--net".into(), net.into()];
    Ok(guest)
}

/// A port of the loopback where somebody listens whom the guest may not reach.
fn forbidden() -> Result<(TcpListener, u16), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// What the guest's script must have printed.
fn expected(file: &[u8]) -> [String; 10] {
    let numbers: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    [
        "net: address 02:62:75:6c:00:00, mtu 1500".to_owned(),
        "lease 10.0.2.15/24 via 10.0.2.2, names from 10.0.2.3, 86400 s".to_owned(),
        "3 packets transmitted, 3 packets received, 0% packet loss".to_owned(),
        "net: web.test is 10.0.2.2".to_owned(),
        format!("net: fetched {}", sha256(file)),
        format!("net: sent {}", sha256(numbers.as_bytes())),
        format!("net: fetched four times {}", sha256(file)),
        "wget: can't connect to remote host (10.0.2.2): Connection refused".to_owned(),
        "wget: can't connect to remote host (127.0.0.1): Connection refused".to_owned(),
        "net: end".to_owned(),
    ]
}

#[test]
fn a_guest_reaches_what_policy_allows_and_nothing_else() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, pattern(FILE));
    let (web, dns, (silent, other)) = (Web::start(file.clone())?, resolver(Ipv4Addr::new(10, 0, 2, 2))?, forbidden()?);
    let net = format!("user,dns=127.0.0.1:{dns},allow=127.0.0.1:{}/tcp", web.port);
    let mut running = Monitor::bulkhead("translate").start_to_prompt(&guest(dir.path(), &net)?, SILENCE)?;
    let pid = await_child(running.pid(), CARD, &[], SILENCE)?;
    let seen = Verified::of(pid)?;
    seen.check(&Layers::new())?;
    seen.check_descriptors(&card_holds())?;
    assert_eq!((seen.guest_ram, seen.own_namespaces.len()), (0, 7));
    running.console.send(&format!("sh /suite/net.sh {} {other}", web.port))?;
    let ran = running.console.wait_for("net: end", SILENCE);
    let output = ran.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    let said: Vec<String> = output.lines().map(|line| line.trim().to_owned()).collect();
    for line in expected(&file) {
        assert!(said.contains(&line), "the guest did not print: {line}\n{output}\n{}", running.stderr());
    }
    let refused = format!(
        "nic0: refused: tcp to 10.0.2.2:{other}: if the guest is to reach that, say allow=127.0.0.1:{other}/tcp"
    );
    assert!(running.stderr().contains(&refused), "{}", running.stderr());
    assert!(silent.accept().is_err(), "nobody has connected where the guest may not");
    assert_eq!(children(running.pid(), CARD), [pid], "one process has served all that");
    running.console.send("poweroff -f")?;
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    assert!(!alive(pid), "nothing is left");
    Ok(())
}

/// The guest sees a reset of each connection, never a hang, and new ones work at once.
#[test]
fn a_cards_process_may_die_at_any_moment() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, pattern(100_000));
    let web = Web::start(file.clone())?;
    let net = format!("user,allow=127.0.0.1:{}/tcp", web.port);
    let mut running = Monitor::bulkhead("translate").start_to_prompt(&guest(dir.path(), &net)?, SILENCE)?;
    let (url, each) = (format!("http://10.0.2.2:{}", web.port), "wget -q -O /dev/null $u/endless; echo ended");
    let fetch = "wget -q -O - $u/file | sha256sum";
    running.console.send(&format!(
        "ip link set eth0 up; udhcpc -i eth0 -n -q -s /suite/udhcpc.sh; u={url}; for n in $(seq {KILLS}); do {each} $n; {fetch}; \
         done; echo all \"done\""
    ))?;
    let mut known = Vec::new();
    for kill in 1..=KILLS {
        let until = Instant::now() + SILENCE;
        while web.endless() < kill {
            assert!(Instant::now() < until, "connection {kill} has not begun:\n{}", running.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
        let pid = await_child(running.pid(), CARD, &known, SILENCE)?;
        send(pid, Signal::SIGKILL);
        known.push(pid);
    }
    let ran = running.console.wait_for("all done", SILENCE);
    let output = ran.map_err(|error| format!("{error}\nstandard error:\n{}", running.stderr()))?;
    assert_eq!(output.matches(&sha256(&file)).count(), KILLS as usize, "{output}\n{}", running.stderr());
    running.console.send("poweroff -f")?;
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    Ok(())
}

/// A profile is no larger than it need be: each rule was used, or says why a run need not meet it.
#[test]
fn every_rule_of_the_cards_profile_is_used() -> Outcome {
    let (dir, file) = (tempfile::tempdir()?, pattern(1 << 20));
    let (web, dns, (_, other)) = (Web::start(file)?, resolver(Ipv4Addr::new(10, 0, 2, 2))?, forbidden()?);
    let profile = Profile::of(Role::DevNet)?;
    let net = format!("user,dns=127.0.0.1:{dns},allow=127.0.0.1:{}/tcp", web.port);
    let command = Monitor::bulkhead("translate").command(&guest(dir.path(), &net)?)?;
    let uses = move |word: &str, console: &mut Console| -> Result<(), Box<dyn Error>> {
        console.wait_for("bulkhead# ", SILENCE)?;
        console.send(&format!("sh /suite/net.sh {} {other}; {word}", web.port))?;
        Ok(())
    };
    let (code, used) = Traced::watch(command, &profile, move |mut console| {
        for word in ["reboot -f", "poweroff -f"] {
            if let Err(error) = uses(word, &mut console) {
                eprintln!("{word}: {error}");
                return;
            }
        }
        // Keeps reading until the end.
        let _ = console.wait_for("never printed", SILENCE);
    })?;
    assert_eq!(code, 0);
    let broken: Vec<&i64> = used.refused.iter().filter(|call| !profile.refuses(**call)).collect();
    assert!(broken.is_empty(), "it broke its profile by system calls {broken:?}");
    assert_eq!(used.unused(&profile), Vec::<String>::new(), "rules that nothing uses");
    Ok(())
}

/// An operator's `inspect` and `restart` know a card as they know a disk; another kind of link is an error that says what
/// there is.
#[test]
fn a_card_is_a_device_like_others() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut guest = guest(dir.path(), "user")?;
    guest.options.extend(["--name".into(), "netted".into()]);
    let mut command = Monitor::bulkhead("translate").command(&guest)?;
    command.env("XDG_RUNTIME_DIR", dir.path());
    let mut running = Monitor::bulkhead("translate").launch(command)?;
    running.console.wait_for("bulkhead# ", SILENCE)?;
    let before = await_child(running.pid(), CARD, &[], SILENCE)?;
    let restarted = tests::operator::bulkhead(dir.path(), &["restart", "netted", "nic0"])?;
    assert!(restarted.status.success(), "{restarted:?}");
    await_child(running.pid(), CARD, &[before], SILENCE)?;
    let replaced = || -> Result<bool, Box<dyn Error>> {
        let seen = tests::operator::json(&tests::operator::bulkhead(dir.path(), &["inspect", "netted", "--json"])?)?;
        let device = &seen["devices"][0];
        Ok(device["name"] == "nic0" && device["state"] == "serving" && device["replaced"] == 1)
    };
    tests::operator::wait_until(SILENCE, || replaced().unwrap_or(false))?;
    running.console.send("poweroff -f")?;
    assert!(running.wait(SILENCE)?.success(), "{}", running.stderr());
    fs::write(dir.path().join("tap.toml"), "kernel = \"/k\"\n[[net]]\nmode = \"tap\"\n")?;
    let refused = tests::operator::bulkhead(dir.path(), &["run", &dir.path().join("tap.toml").display().to_string()])?;
    let why = tests::operator::stderr(&refused);
    assert!(!refused.status.success() && why.contains("line 3") && why.contains("`user` is the one mode"), "{why}");
    Ok(())
}
