//! What comes before a case: page rights that change, flushes, code rewritten in place, memory and registers as they
//! should be.

use std::sync::atomic::Ordering;

use rand::Rng;
use vmm::cpu::{XsaveArea, eflags};
use vmm::engine::Engine;
use vmm::mmu::Flush;

use super::board::{HIGH, PageRights, Place};
use super::pair::{INT3, Pair};
use crate::generate::Generated;
use crate::oracle::layout::{CODE, DATA, PAGE};

impl Pair {
    /// What happens between cases.
    fn between(&mut self) {
        match self.rng.random_range(0..64) {
            0 | 1 => {
                self.setting.rights = PageRights::random(&mut self.rng);
                self.renew_tables();
            }
            2 => self.renew_tables(),
            3 => self.flush(Flush::NonGlobal),
            4 => self.flush(Flush::Page(self.setting.code())),
            5 => self.flush(Flush::Page(DATA + PAGE)),
            _ => {}
        }
    }

    fn flush(&mut self, what: Flush) {
        self.boards.iter_mut().for_each(|b| b.vcpu.mmu.flush(what));
    }

    /// Puts RAM at `at` into the state wanted, telling the engines.
    fn restore(&mut self, at: u64, bytes: &[u8], by_device: bool) {
        for (i, board) in self.boards.iter_mut().enumerate() {
            if !board.put(at, bytes) {
                continue;
            }
            let first = at & !0xfff;
            for frame in (first..at + bytes.len() as u64).step_by(PAGE as usize) {
                if !board.vcpu.mmu.ram.is_code(frame) {
                    continue;
                }
                if !by_device {
                    board.vcpu.mmu.note_code_write(frame);
                } else if i == 1 {
                    self.translator.invalidate(&mut board.vcpu, frame, frame + PAGE as u64);
                } else {
                    self.interpreter.invalidate(&mut board.vcpu, frame, frame + PAGE as u64);
                }
            }
        }
    }

    /// Places the code of a case; the linear address of its first instruction.
    fn place_code(&mut self, generated: &Generated) -> u32 {
        let mut bytes = generated.case.code.clone();
        let page = PAGE as usize;
        let at = match self.rng.random_range(0..12) {
            // Around the boundary between the pages.
            0 => page - self.rng.random_range(1..bytes.len().clamp(2, page)),
            1 => 0,
            2 => page,
            _ => self.rng.random_range(0..page - bytes.len()),
        };
        for place in &generated.addresses {
            let word = &mut bytes[*place..place + 4];
            let address = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            word.copy_from_slice(&(address.wrapping_sub(CODE) + self.setting.code() + at as u32).to_le_bytes());
        }
        let mut write = |range: std::ops::Range<usize>, from: Option<&[u8]>| {
            for (i, at) in range.enumerate() {
                self.code[at / page][at % page] = from.map_or(INT3, |f| f[i]);
            }
        };
        write(self.used.clone(), None);
        self.used = at..at + bytes.len();
        write(self.used.clone(), Some(&bytes));
        self.setting.code() + at as u32
    }

    /// Prepares both boards for a case.
    pub(super) fn prepare(&mut self, image: &[u8], generated: &Generated) {
        self.between();
        let start = self.place_code(generated);
        let by_device = self.rng.random_ratio(1, 2);
        let (code, system) = (std::mem::take(&mut self.code), std::mem::take(&mut self.system));
        let mut frames = self.setting.code_frames();
        if self.setting.place != Place::Flat && self.setting.rights.swapped {
            frames.reverse();
        }
        frames.iter().zip(&code).for_each(|(at, bytes)| self.restore(*at, bytes, by_device));
        let data = self.setting.data_frames();
        for (i, at) in data.into_iter().enumerate() {
            self.restore(at, &image[i % 2 * PAGE as usize..][..PAGE as usize], by_device);
        }
        self.restore(self.setting.system()[0].0, &system[0], by_device);
        (self.code, self.system) = (code, system);
        self.set_state(start, generated);
    }

    fn set_state(&mut self, start: u32, generated: &Generated) {
        let case = &generated.case;
        let mut state = self.setting.state();
        state.gpr = case.gpr;
        if !matches!(self.setting.place, Place::Flat | Place::User) {
            // Any base register may point above the split instead of below.
            state.gpr.iter_mut().for_each(|r| *r ^= if self.rng.random_ratio(1, 3) { HIGH } else { 0 });
        }
        state.eip = start;
        state.eflags |= case.eflags & !eflags::IF;
        let mut pending = false;
        match self.rng.random_range(0..3) {
            _ if self.setting.returns => state.eflags |= eflags::IF,
            0 => {}
            1 => state.eflags |= eflags::IF,
            _ => pending = true,
        }
        state.xsave = XsaveArea(case.xsave.as_slice().try_into().expect("a whole area"));
        state.xsave.0[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        for board in &mut self.boards {
            board.vcpu.state.clone_from(&state);
            board.vcpu.mmu.pending_debug = 0;
            board.wires.pending.store(pending as u8, Ordering::Relaxed);
            board.vcpu.lines.set_intr(pending);
        }
    }
}
