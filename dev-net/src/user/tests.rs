//! A guest with a TCP/IP stack of its own (smoltcp's, at the other end of the link), and a broker that dials this host.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use ipc::flow::{self, GATEWAY, GUEST, Heard, RESOLVER};
use nix::sys::socket::{MsgFlags, recv, send};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpCidr};

use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Whatever a test waits for has come by then, or never will.
const PATIENCE: Duration = Duration::from_secs(300);

struct Guest {
    wire: Wire,
    broker: OwnedFd,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// Where the broker's connections lead; none for a broker that refuses.
    host: Option<SocketAddr>,
    /// The broker's ends of UDP flows.
    datagrams: Vec<OwnedFd>,
}

/// The guest's end of the link.
struct Wire {
    link: User,
    /// Every frame that it sent.
    sent: Vec<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Wire);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        self.0.link.send(&frame);
        self.0.sent.push(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Time) -> Option<(Rx, Tx<'_>)> {
        let frame = self.link.next_frame()?.to_vec();
        self.link.frame_done();
        Some((Rx(frame), Tx(self)))
    }

    fn transmit(&mut self, _: Time) -> Option<Tx<'_>> {
        Some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        (capabilities.medium, capabilities.max_transmission_unit) = (Medium::Ethernet, 1514);
        capabilities
    }
}

fn link(orphans: Vec<Orphan>) -> (User, OwnedFd) {
    let (broker, theirs) = flow::pair().unwrap();
    (User::new(MAC, theirs, orphans).unwrap(), broker)
}

impl Guest {
    fn new(host: Option<SocketAddr>) -> Self {
        let (link, broker) = link(Vec::new());
        let mut wire = Wire { link, sent: Vec::new() };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut wire, Time::ZERO);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Self { wire, broker, interface, sockets: SocketSet::new(Vec::new()), host, datagrams: Vec::new() }
    }

    /// One turn of everybody.
    fn turn(&mut self) {
        self.interface.poll(Time::now(), &mut self.wire, &mut self.sockets);
        while let Heard::Some(request) = flow::next_request(self.broker.as_fd()) {
            self.decide(request);
        }
        self.wire.link.turn();
    }

    fn decide(&mut self, flow::Request { id, protocol, .. }: flow::Request) {
        let broker = self.broker.as_fd();
        match (self.host, protocol) {
            (None, _) => flow::answer(broker, id, Verdict::Refused, None).unwrap(),
            (Some(host), Protocol::Tcp) => {
                let stream = TcpStream::connect(host).unwrap();
                stream.set_nonblocking(true).unwrap();
                flow::answer(broker, id, Verdict::Dialled, Some(stream.as_fd())).unwrap();
            }
            (Some(_), Protocol::Udp) => {
                let (ours, theirs) = flow::pair().unwrap();
                flow::answer(broker, id, Verdict::Dialled, Some(theirs.as_fd())).unwrap();
                self.datagrams.push(ours);
            }
        }
    }

    fn until(&mut self, what: impl Fn(&mut Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !what(self) {
            self.turn();
            assert!(Instant::now() < until);
        }
    }

    fn connect(&mut self, to: (Ipv4Addr, u16), port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 60_000]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let context = self.interface.context();
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).connect(context, to, port).unwrap();
        handle
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn state(&mut self, handle: SocketHandle) -> tcp::State {
        self.tcp(handle).state()
    }
}

fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(1).fill_bytes(&mut bytes);
    bytes
}

/// A host that reads to the end, and then sends back what it read.
fn echo_host() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    (address, thread)
}

#[test]
fn bytes_pass_both_ways_and_so_do_ends() {
    let (host, thread) = echo_host();
    let (mut guest, all) = (Guest::new(Some(host)), pattern(2_000_000));
    let handle = guest.connect((Ipv4Addr::new(93, 184, 216, 34), 80), 40_000);
    let (mut sent, mut back) = (0, Vec::new());
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        guest.turn();
        let socket = guest.tcp(handle);
        if socket.may_send() && sent < all.len() {
            sent += socket.send_slice(&all[sent..]).unwrap();
            if sent == all.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        if !socket.may_recv() && back.len() == all.len() {
            break;
        }
    }
    assert!(back == all, "{} of {} bytes came back", back.len(), all.len());
    thread.join().unwrap();
    guest.until(|guest| guest.wire.link.tcp.is_idle());
}

#[test]
fn who_is_refused_is_told_at_once() {
    let mut guest = Guest::new(None);
    let handle = guest.connect((GATEWAY, 22), 40_000);
    assert_eq!(guest.state(handle), tcp::State::SynSent);
    guest.until(|guest| guest.state(handle) == tcp::State::Closed);
    assert!(guest.wire.link.tcp.is_idle());
}

#[test]
fn who_is_reset_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new(Some(listener.local_addr().unwrap()));
    let handle = guest.connect((GATEWAY, 80), 40_000);
    guest.until(|guest| guest.state(handle) == tcp::State::Established);
    guest.tcp(handle).send_slice(b"unread").unwrap();
    (0..10).for_each(|_| guest.turn());
    // What was not read makes a reset of the close.
    drop(listener.accept().unwrap());
    guest.until(|guest| guest.state(handle) == tcp::State::Closed);
    guest.until(|guest| guest.wire.link.tcp.is_idle());
}

/// A guest that waits for what a process that is gone was to bring.
#[test]
fn connections_of_an_earlier_process_are_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new(Some(listener.local_addr().unwrap()));
    let handle = guest.connect((GATEWAY, 80), 40_000);
    guest.until(|guest| guest.state(handle) == tcp::State::Established);
    (guest.wire.link, guest.broker) =
        link(vec![(40_000, SocketAddrV4::new(GATEWAY, 80)), (41_000, SocketAddrV4::new(GATEWAY, 9))]);
    (0..10).for_each(|_| guest.turn());
    assert_eq!(guest.state(handle), tcp::State::Established, "it knows nothing yet");
    guest.wire.link.guest_listens();
    guest.until(|guest| guest.state(handle) == tcp::State::Closed);
    let again = guest.connect((GATEWAY, 80), 42_000);
    guest.until(|guest| guest.state(again) == tcp::State::Established);
}

#[test]
fn datagrams_pass_both_ways() {
    let mut guest = Guest::new(Some("127.0.0.1:1".parse().unwrap()));
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
    socket.bind(5353).unwrap();
    socket.send_slice(b"question", (RESOLVER, 53)).unwrap();
    guest.until(|guest| !guest.datagrams.is_empty());
    (0..10).for_each(|_| guest.turn());
    let (flow, mut bytes) = (guest.datagrams[0].as_raw_fd(), [0; 64]);
    assert_eq!(recv(flow, &mut bytes, MsgFlags::empty()), Ok(8));
    // One that the link has no room for is lost alone.
    send(flow, &[1; 2000], MsgFlags::empty()).unwrap();
    send(flow, b"answer", MsgFlags::empty()).unwrap();
    guest.until(|guest| guest.sockets.get_mut::<udp::Socket<'_>>(handle).can_recv());
    let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
    let (answer, from) = socket.recv().unwrap();
    assert_eq!((answer, from.endpoint), (&b"answer"[..], (RESOLVER, 53).into()));
}

#[test]
fn a_guest_gets_its_address_and_an_echo_of_the_gateway() {
    let mut guest = Guest::new(None);
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let mut found = None;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        guest.turn();
        if let Some(dhcpv4::Event::Configured(config)) = guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            found = Some((config.address, config.router, config.dns_servers.first().copied()));
            break;
        }
    }
    assert_eq!(found, Some((smoltcp::wire::Ipv4Cidr::new(GUEST, 24), Some(GATEWAY), Some(RESOLVER))));
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
    let handle = guest.sockets.add(icmp::Socket::new(buffer(), buffer()));
    let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    let request = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: b"are you there" };
    for to in [Ipv4Addr::new(8, 8, 8, 8), GATEWAY] {
        let bytes = socket.send(request.buffer_len(), to.into()).unwrap();
        request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    }
    guest.until(|guest| guest.sockets.get_mut::<icmp::Socket<'_>>(handle).can_recv());
    let (_, from) = guest.sockets.get_mut::<icmp::Socket<'_>>(handle).recv().unwrap();
    assert_eq!(from, GATEWAY.into(), "and of nobody else");
}

/// Frames of any bytes, and frames of a real guest with some bytes changed: nothing panics, and no table grows beyond its
/// limit.
#[test]
fn hostile_frames_are_survived() {
    let (host, thread) = echo_host();
    let mut guest = Guest::new(Some(host));
    let handle = guest.connect((GATEWAY, 80), 40_000);
    guest.until(|guest| guest.state(handle) == tcp::State::Established);
    guest.tcp(handle).send_slice(&pattern(20_000)).unwrap();
    guest.tcp(handle).close();
    guest.until(|guest| guest.tcp(handle).recv_queue() == 20_000);
    thread.join().unwrap();
    let (valid, (mut link, broker)) = (guest.wire.sent, link(Vec::new()));
    let mut rng = SmallRng::seed_from_u64(2);
    for round in 0..60_000 {
        let mut frame = match round % 4 {
            0 => pattern(rng.random_range(0..1514)),
            _ => valid[rng.random_range(0..valid.len())].clone(),
        };
        for _ in 0..rng.random_range(0..4) {
            let place = rng.random_range(0..frame.len().max(1)).min(60);
            frame.get_mut(place).into_iter().for_each(|byte| *byte = rng.random());
        }
        // A header that is wrong is dropped: mostly it is right.
        if rng.random_ratio(3, 4) && frame.len() > 34 && frame[14] == 0x45 {
            smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
        }
        frame.truncate(rng.random_range(frame.len() / 2..frame.len() + 1).max(frame.len().saturating_sub(round % 3)));
        link.send(&frame);
        while let Heard::Some(request) = flow::next_request(broker.as_fd()) {
            let verdict = if rng.random() { Verdict::Refused } else { Verdict::Failed };
            flow::answer(broker.as_fd(), request.id, verdict, None).unwrap();
        }
        link.turn();
        while link.next_frame().is_some() && rng.random_ratio(9, 10) {
            link.frame_done();
        }
    }
}
