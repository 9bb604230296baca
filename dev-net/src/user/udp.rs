//! UDP: a flow for each pair of a port of the guest and a peer, by the datagram. The broker passes datagrams on to the peer
//! (why: `ipc::flow`), so a flow is a socket of packets. The one that was used least recently makes room for a new one.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use ipc::flow::{GUEST, Protocol};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, UdpPacket, UdpRepr};

use super::answer::ip;
use super::exit::Exit;
use super::frame::{Datagram, Key};
use super::outbox::Outbox;
use crate::config::MTU;

/// Most flows: fewer than the broker gives, since one that was let go of is closed there a moment later.
const MOST: usize = 48;
/// A flow that nothing passed in for so long is let go of.
const IDLE: Duration = Duration::from_secs(60);
/// Datagrams that wait for a flow's answer.
const WAITING: usize = 4;
/// Datagrams that are taken of one flow at one go.
const TURN: usize = 32;
/// Longest payload for the guest: there are no fragments.
const LONGEST: usize = MTU - 20 - 8;

#[derive(Debug)]
struct Flow {
    key: Key,
    /// None until the broker has decided; until then, what waits.
    socket: Option<OwnedFd>,
    waiting: Vec<Vec<u8>>,
    used: Duration,
    readable: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Udp {
    flows: HashMap<u32, Flow>,
    ids: HashMap<Key, u32>,
}

impl Udp {
    /// The guest sends a datagram. What finds no way is lost.
    pub fn sent(&mut self, datagram: &Datagram<'_>, now: Duration, exit: &mut Exit) {
        // An empty packet would be the end of the flow.
        if datagram.payload.is_empty() {
            return;
        }
        let Some(flow) = self.flow(datagram.key, now, exit) else { return };
        flow.used = now;
        match &flow.socket {
            Some(socket) => pass_out(socket, datagram.payload),
            None if flow.waiting.len() < WAITING => flow.waiting.push(datagram.payload.to_vec()),
            None => {}
        }
    }

    fn flow(&mut self, key: Key, now: Duration, exit: &mut Exit) -> Option<&mut Flow> {
        if !self.ids.contains_key(&key) {
            if self.flows.len() >= MOST {
                let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used).map(|(id, _)| *id)?;
                self.close(oldest);
            }
            let id = exit.ask(Protocol::Udp, key)?;
            self.ids.insert(key, id);
            let flow = Flow { key, socket: None, waiting: Vec::new(), used: now, readable: false };
            self.flows.insert(id, flow);
        }
        self.flows.get_mut(self.ids.get(&key)?)
    }

    fn close(&mut self, id: u32) {
        if let Some(flow) = self.flows.remove(&id) {
            self.ids.remove(&flow.key);
        }
    }

    /// The broker has decided on `id`, which may have been let go of.
    pub fn answered(&mut self, id: u32, socket: Option<OwnedFd>, exit: &mut Exit) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Some(socket) = socket.filter(|socket| exit.watch(Protocol::Udp, id, socket.as_fd()).is_ok()) else {
            return self.close(id);
        };
        flow.waiting.drain(..).for_each(|payload| pass_out(&socket, &payload));
        flow.socket = Some(socket);
    }

    /// Something came in flow `id`.
    pub fn ready(&mut self, id: u32) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.readable = true;
        }
    }

    /// Takes what has come, as far as there is room, and lets go of what is not used.
    pub fn turn(&mut self, now: Duration, outbox: &mut Outbox) {
        let mut over = Vec::new();
        for (id, flow) in &mut self.flows {
            if !flow.pass_in(now, outbox) || flow.used + IDLE <= now {
                over.push(*id);
            }
        }
        over.into_iter().for_each(|id| self.close(id));
    }

    /// Whether more has come than there was room for.
    pub fn has_more(&self) -> bool {
        self.flows.values().any(|flow| flow.readable)
    }

    /// When [`Self::turn`] is due.
    pub fn due(&self, now: Duration) -> Option<Duration> {
        let oldest = self.flows.values().map(|flow| flow.used).min()?;
        Some((oldest + IDLE).saturating_sub(now))
    }
}

impl Flow {
    /// False if the flow has ended.
    fn pass_in(&mut self, now: Duration, outbox: &mut Outbox) -> bool {
        let Some(socket) = self.socket.as_ref().filter(|_| self.readable) else { return true };
        let mut buffer = [0; LONGEST + 1];
        for _ in 0..TURN {
            if !outbox.has_room() {
                return true;
            }
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return false,
                Ok(length) if length <= LONGEST => {
                    self.used = now;
                    pass_on(self.key, &buffer[..length], outbox);
                }
                Ok(_) => tracing::debug!("a datagram from {} that is too long for the link", self.key.to),
                Err(Errno::EAGAIN) => {
                    self.readable = false;
                    return true;
                }
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn pass_out(socket: &OwnedFd, payload: &[u8]) {
    let _ = send(socket.as_raw_fd(), payload, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}

fn pass_on(key: Key, payload: &[u8], outbox: &mut Outbox) {
    let ports = UdpRepr { src_port: key.to.port(), dst_port: key.port };
    let (from, length) = (*key.to.ip(), payload.len());
    ip(from, GUEST, IpProtocol::Udp, ports.header_len() + length, outbox, |bytes| {
        let (mut udp, checksums) = (UdpPacket::new_unchecked(bytes), ChecksumCapabilities::default());
        let fill = |bytes: &mut [u8]| bytes.copy_from_slice(payload);
        ports.emit(&mut udp, &from.into(), &GUEST.into(), length, fill, &checksums);
    });
}
