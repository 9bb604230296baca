use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;

fn config() -> LaunchConfig {
    LaunchConfig {
        version: VERSION,
        memory: 512 << 20,
        command_line: "console=ttyS0".into(),
        engine: "interp".into(),
        cpu: "max,-avx2".into(),
        no_reboot: false,
        stats: true,
        json: false,
        started_ns: 7,
        kernel: 5,
        initrd: Some(6),
        console: Some(7),
        disks: vec![disk("disk0", 8), disk("disk1", 9)],
    }
}

fn disk(name: &str, socket: RawFd) -> DiskConfig {
    DiskConfig { name: name.into(), socket, bounce: 8 << 20 }
}

fn channels() -> (Channel, Channel) {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    (Channel::new(a), Channel::new(b))
}

#[test]
fn messages_arrive_as_sent() {
    let (a, b) = channels();
    a.send(&config()).unwrap();
    a.send(&Request::PowerButton).unwrap();
    assert_eq!(b.receive::<LaunchConfig>().unwrap(), config());
    assert_eq!(b.try_receive::<Request>().unwrap(), Some(Request::PowerButton));
    assert_eq!(b.try_receive::<Request>().unwrap(), None);
    drop(a);
    assert!(matches!(b.receive::<Request>(), Err(LaunchError::Closed)));
}

#[test]
fn hostile_packets_are_errors() {
    let whole = encode(&config()).unwrap();
    for length in 0..whole.len() {
        assert!(decode::<LaunchConfig>(&whole[..length]).is_err(), "{length} bytes");
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert!(matches!(decode::<LaunchConfig>(&longer), Err(LaunchError::Trailing(1))));
    assert!(matches!(decode::<LaunchConfig>(&vec![0; MAX_PACKET + 1]), Err(LaunchError::Size(_))));
    // A string that claims 2^60 bytes must not be believed.
    assert!(decode::<String>(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    assert!(decode::<Request>(&[9]).is_err());
    let (a, b) = channels();
    send(a.0.as_raw_fd(), &vec![0; MAX_PACKET + 100], MsgFlags::empty()).unwrap();
    assert!(matches!(b.receive::<LaunchConfig>(), Err(LaunchError::Size(_))));
}

#[test]
fn nonsense_is_refused() {
    assert!(config().validate().is_ok());
    let wrong = |change: fn(&mut LaunchConfig)| {
        let mut c = config();
        change(&mut c);
        c.validate().unwrap_err().to_string()
    };
    assert!(wrong(|c| c.version = 1).contains("version 1"));
    assert!(wrong(|c| c.cpu = "max,-avx9".into()).contains("avx9"));
    assert!(wrong(|c| c.memory = 0).contains("memory"));
    assert!(wrong(|c| c.memory = u64::MAX).contains("memory"));
    assert!(wrong(|c| c.memory = (16 << 20) + 1).contains("4 KiB"));
    assert!(wrong(|c| c.kernel = 6).contains("distinct"));
    assert!(wrong(|c| c.kernel = -1).contains("handed over"));
    assert!(wrong(|c| c.disks[1].socket = 8).contains("distinct"));
    assert!(wrong(|c| c.disks[1].name = "disk0".into()).contains("distinct"));
    assert!(wrong(|c| c.disks[0].name = "x".repeat(MAX_NAME + 1)).contains("32 bytes"));
    assert!(wrong(|c| c.disks[0].bounce = 4096).contains("bounce"));
    assert!(wrong(|c| c.disks = (0..17).map(|i| disk(&i.to_string(), 20 + i)).collect()).contains("17 disks"));
    assert!(wrong(|c| c.command_line = "x".repeat(MAX_COMMAND_LINE + 1)).contains("command line"));
}
