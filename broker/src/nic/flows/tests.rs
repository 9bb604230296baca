use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

struct Card {
    flows: Flows,
    theirs: OwnedFd,
}

fn card(nic: &str) -> Card {
    let (flows, theirs) = Flows::new("nic0", &Nic::parse(nic).unwrap(), &[]).unwrap();
    Card { flows, theirs }
}

impl Card {
    fn ask(&mut self, protocol: Protocol, to: SocketAddrV4) -> (Verdict, Option<OwnedFd>) {
        flow::ask(self.theirs.as_fd(), Request { id: 5, protocol, port: 1000, to }).unwrap();
        self.flows.serve(End::Requests);
        match flow::next_answer(self.theirs.as_fd()) {
            Heard::Some((5, verdict, socket)) => (verdict, socket),
            other => panic!("{other:?}"),
        }
    }
}

fn port_of(address: std::net::SocketAddr) -> u16 {
    address.port()
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags) {
    poll(&mut [PollFd::new(fd, flags)], PollTimeout::NONE).unwrap();
}

#[test]
fn the_gateway_is_this_host_as_far_as_it_is_allowed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port_of(listener.local_addr().unwrap());
    let host = SocketAddrV4::new(flow::GATEWAY, port);
    assert_eq!(card("user").ask(Protocol::Tcp, host).0, Verdict::Refused);
    let mut allowed = card(&format!("user,allow=127.0.0.1:{port}/tcp"));
    let (verdict, socket) = allowed.ask(Protocol::Tcp, host);
    let socket = socket.unwrap();
    assert_eq!(verdict, Verdict::Dialled);
    let (mut accepted, _) = listener.accept().unwrap();
    wait(socket.as_fd(), PollFlags::POLLOUT);
    let mut dialled = TcpStream::from(socket);
    dialled.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    accepted.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    // Asked for directly, it is judged as what it is.
    assert_eq!(allowed.ask(Protocol::Tcp, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)).0, Verdict::Dialled);
    assert_eq!(allowed.ask(Protocol::Udp, host).0, Verdict::Refused);
    let orphans = [(1000, host), (1000, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))];
    assert_eq!(allowed.flows.recent, orphans, "what was refused was not opened");
    assert_eq!(allowed.ask(Protocol::Tcp, SocketAddrV4::new(flow::GUEST, port)).0, Verdict::Refused, "nobody");
}

#[test]
fn datagrams_pass_both_ways_until_the_process_lets_go() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut card = card(&format!("user,dns={}", peer.local_addr().unwrap()));
    let (verdict, socket) = card.ask(Protocol::Udp, SocketAddrV4::new(flow::RESOLVER, 53));
    let socket = socket.unwrap();
    assert_eq!(verdict, Verdict::Dialled);
    send(socket.as_raw_fd(), b"question", MsgFlags::empty()).unwrap();
    card.flows.serve(End::Inner(0));
    let mut buffer = [0; 64];
    let (length, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"question");
    peer.send_to(b"answer", from).unwrap();
    wait(card.flows.relays[0].as_ref().unwrap().outer.as_fd(), PollFlags::POLLIN);
    card.flows.serve(End::Outer(0));
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
    assert_eq!(&buffer[..length], b"answer");
    drop(socket);
    card.flows.serve(End::Inner(0));
    assert!(card.flows.relays[0].is_none() && card.flows.sources().count() == 1);
    assert_eq!(card.ask(Protocol::Udp, SocketAddrV4::new(flow::RESOLVER, 54)).0, Verdict::Refused, "not for names");
}

#[test]
fn a_process_gets_so_many_flows_and_no_more() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut card = card(&format!("user,dns={}", peer.local_addr().unwrap()));
    let mut held = Vec::new();
    for _ in 0..MAX_RELAYS {
        held.push(card.ask(Protocol::Udp, SocketAddrV4::new(flow::RESOLVER, 53)).1.unwrap());
    }
    assert_eq!(card.ask(Protocol::Udp, SocketAddrV4::new(flow::RESOLVER, 53)).0, Verdict::Failed);
    drop(held.remove(7));
    card.flows.serve(End::Inner(7));
    assert_eq!(card.ask(Protocol::Udp, SocketAddrV4::new(flow::RESOLVER, 53)).0, Verdict::Dialled);
    assert_eq!(card.flows.relays.len(), MAX_RELAYS);
}

#[test]
fn what_is_no_request_ends_the_channel() {
    let mut card = card("user");
    send(card.theirs.as_raw_fd(), &[0; 16], MsgFlags::empty()).unwrap();
    card.flows.serve(End::Requests);
    assert_eq!(card.flows.sources().count(), 0);
}
