//! TCP: a connection of the guest's ends in a TCP stack of our own, and its bytes go on in a socket that the broker dialled.
//!
//! The guest's connection is accepted when the socket is connected, and reset when it is refused or fails; so the guest sees
//! what it would see without us. What each side has closed or reset is closed or reset towards the other.

mod bytes;
mod wire;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use ipc::flow::{GATEWAY, GUEST, MAX_FLOWS, PREFIX, Protocol};
use nix::sys::socket::{getsockopt, sockopt};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::answer::ip;
use super::exit::{Exit, Ready};
use super::frame::{Key, Segment};
use super::outbox::Outbox;
use bytes::Bytes;
use wire::Wire;

/// Bytes that a connection holds for the host, and for the guest.
const BUFFERS: (usize, usize) = (128 << 10, 256 << 10);
/// How often a guest that says nothing is asked whether it is there, and silence after which it is not.
const PATIENCE: (u64, u64) = (60, 240);

/// Of a guest's connection.
#[derive(Debug)]
enum Stage {
    /// The broker is asked, and this is what opened it.
    Asked(Vec<u8>),
    /// The socket is being connected.
    Connecting(Vec<u8>, OwnedFd),
    Open(SocketHandle, Bytes),
}

/// See the module.
pub struct Tcp {
    flows: HashMap<u32, (Key, Stage)>,
    ids: HashMap<Key, u32>,
    interface: Interface,
    sockets: SocketSet<'static>,
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(now.as_micros() as i64)
}

impl Tcp {
    /// No connection yet. `seed` must not be guessed.
    pub fn new(seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Wire::nowhere(), Instant::ZERO);
        interface.update_ip_addrs(|list| _ = list.push(IpCidr::new(GATEWAY.into(), PREFIX)));
        // Every address is ours, to the guest.
        interface.set_any_ip(true);
        let _ = interface.routes_mut().add_default_ipv4_route(GATEWAY);
        Self { flows: HashMap::new(), ids: HashMap::new(), interface, sockets: SocketSet::new(Vec::new()) }
    }

    /// Whether `id` is a connection's.
    pub fn has(&self, id: u32) -> bool {
        self.flows.contains_key(&id)
    }

    /// The guest sends a segment.
    pub fn sent(&mut self, segment: &Segment<'_>, now: Duration, exit: &mut Exit, outbox: &mut Outbox) {
        let open = match self.ids.get(&segment.key).and_then(|id| self.flows.get(id)) {
            Some((_, Stage::Open(..))) => true,
            // It is asked already: what opens a connection may be said again, and nothing else yet.
            Some(_) => return,
            None => false,
        };
        if !open
            && segment.opens
            && self.flows.len() < MAX_FLOWS
            && let Some(id) = exit.ask(Protocol::Tcp, segment.key)
        {
            self.ids.insert(segment.key, id);
            self.flows.insert(id, (segment.key, Stage::Asked(segment.packet.to_vec())));
            return;
        }
        // What belongs to no connection is answered by a reset.
        self.feed(segment.packet, now, outbox);
    }

    fn feed(&mut self, packet: &[u8], now: Duration, outbox: &mut Outbox) {
        self.interface.poll_ingress_single(instant(now), &mut Wire::bringing(packet, outbox), &mut self.sockets);
    }

    /// The broker has decided on `id`.
    pub fn answered(&mut self, id: u32, socket: Option<OwnedFd>, now: Duration, exit: &mut Exit, outbox: &mut Outbox) {
        let Some((key, stage)) = self.flows.remove(&id) else { return };
        let socket = socket.filter(|socket| exit.watch(Protocol::Tcp, id, socket.as_fd()).is_ok());
        match (stage, socket) {
            (Stage::Asked(opening), Some(socket)) => {
                self.flows.insert(id, (key, Stage::Connecting(opening, socket)));
            }
            (Stage::Asked(opening), None) => {
                self.ids.remove(&key);
                self.feed(&opening, now, outbox);
            }
            // It was decided before: the broker says it twice.
            (stage, _) => drop(self.flows.insert(id, (key, stage))),
        }
    }

    /// Something may be done with the socket of `id` again.
    pub fn ready(&mut self, id: u32, what: Ready, now: Duration, outbox: &mut Outbox) {
        match self.flows.get_mut(&id) {
            Some((_, Stage::Open(_, bytes))) => bytes.ready(what),
            Some((_, Stage::Connecting(..))) if what.writable => self.connected(id, now, outbox),
            _ => {}
        }
    }

    /// The socket of `id` is connected, or that has failed.
    fn connected(&mut self, id: u32, now: Duration, outbox: &mut Outbox) {
        let Some((key, Stage::Connecting(opening, socket))) = self.flows.remove(&id) else { return };
        let listening = (getsockopt(&socket, sockopt::SocketError) == Ok(0)).then(|| listening(key)).flatten();
        let Some(listening) = listening else {
            self.ids.remove(&key);
            return self.feed(&opening, now, outbox);
        };
        let handle = self.sockets.add(listening);
        // It takes this connection now, before there is another that it could take.
        self.feed(&opening, now, outbox);
        self.flows.insert(id, (key, Stage::Open(handle, Bytes::new(socket))));
    }

    /// Moves all bytes that can be moved, and lets go of connections that are over.
    pub fn turn(&mut self, now: Duration, outbox: &mut Outbox) {
        let mut wire = Wire::to(outbox);
        loop {
            while self.interface.poll_egress(instant(now), &mut wire, &mut self.sockets) != PollResult::None {}
            let mut moved = false;
            for (_, stage) in self.flows.values_mut() {
                if let Stage::Open(handle, bytes) = stage {
                    moved |= bytes.move_on(self.sockets.get_mut::<Socket<'_>>(*handle));
                }
            }
            if !moved {
                break;
            }
        }
        let over = |(id, (_, stage)): (&u32, &(Key, Stage))| match stage {
            Stage::Open(handle, _) => {
                let state = self.sockets.get::<Socket<'_>>(*handle).state();
                // Nothing is left to say. What opened it and was no connection leaves it listening.
                matches!(state, State::Closed | State::TimeWait | State::Listen).then_some(*id)
            }
            _ => None,
        };
        let over: Vec<u32> = self.flows.iter().filter_map(over).collect();
        for id in over {
            if let Some((key, Stage::Open(handle, _))) = self.flows.remove(&id) {
                self.ids.remove(&key);
                self.sockets.remove(handle);
            }
        }
    }

    /// Whether there is no connection, not even one that is being made or closed.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.flows.is_empty() && self.ids.is_empty() && self.sockets.iter().next().is_none()
    }

    /// When [`Self::turn`] is due.
    pub fn due(&mut self, now: Duration) -> Option<Duration> {
        self.interface.poll_delay(instant(now), &self.sockets).map(Duration::from)
    }
}

/// A socket of the stack that waits for the guest to open `key`.
fn listening(key: Key) -> Option<Socket<'static>> {
    let mut socket = Socket::new(SocketBuffer::new(vec![0; BUFFERS.0]), SocketBuffer::new(vec![0; BUFFERS.1]));
    // The peer has decided what to send together, and a wait would be for nothing.
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket.set_keep_alive(Some(smoltcp::time::Duration::from_secs(PATIENCE.0)));
    socket.set_timeout(Some(smoltcp::time::Duration::from_secs(PATIENCE.1)));
    socket.listen((*key.to.ip(), key.to.port())).ok()?;
    Some(socket)
}

/// Sends the guest a segment that no connection of its takes, of `key`.
pub fn probe(key: Key, outbox: &mut Outbox) {
    let segment = TcpRepr {
        src_port: key.to.port(),
        dst_port: key.port,
        control: TcpControl::None,
        seq_number: TcpSeqNumber(0),
        ack_number: Some(TcpSeqNumber(0)),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let from = *key.to.ip();
    ip(from, GUEST, IpProtocol::Tcp, segment.buffer_len(), outbox, |bytes| {
        let (mut packet, checksums) = (TcpPacket::new_unchecked(bytes), ChecksumCapabilities::default());
        segment.emit(&mut packet, &from.into(), &GUEST.into(), &checksums);
    });
}
