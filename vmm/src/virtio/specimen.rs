//! A request as it is kept for its device's fuzzer, made of the private record and what the guest's memory holds now: what a
//! next process would be given.

use super::chain::{Chain, Pieces};
use super::kind::{Chains, Kind};
use super::memory::Shared;
use crate::mmu::GuestRam;
pub use ipc::specimen::Specimen;
use ipc::specimen::{MAX_DATA, MAX_HEAD};

/// What `chain` asks for, as far as it is kept.
pub fn of(chain: &Chain, ram: &GuestRam, chains: Chains, kind: &dyn Kind) -> Specimen {
    let (out, inner) = (chain.out_bytes(), chain.in_bytes());
    let (head, tail) = chains.ends();
    let split = out.min(head.into());
    let tail_bytes = inner.min(tail.into()) as u32;
    let head = bytes(chain, ram, 0, split.min(MAX_HEAD as u64));
    let (out_bytes, in_bytes) = (out - split, inner - u64::from(tail_bytes));
    let data = bytes(chain, ram, split, out_bytes.min(MAX_DATA as u64));
    let what = kind.describe(&head, out_bytes, in_bytes);
    Specimen { what, head, data, out_bytes, in_bytes, tail_bytes, ..Specimen::default() }
}

/// `length` of the readable bytes, from byte `from` on. All of them lie in RAM, as when the record was made.
fn bytes(chain: &Chain, ram: &GuestRam, from: u64, length: u64) -> Vec<u8> {
    let mut found = Vec::with_capacity(length as usize);
    let mut pieces = Pieces::after(&chain.readable, from);
    while let Some((gpa, piece)) = pieces.next((length as usize - found.len()) as u32) {
        found.extend((gpa..gpa + u64::from(piece)).filter_map(|at| Shared::read::<1>(ram, at)).map(|[byte]| byte));
    }
    found
}
