//! The frames of guest RAM that code was translated from: their bytes as they were then, which blocks come from where in
//! them, and how it is noticed that a guest stores to them.
//!
//! Stores to a frame with code are watched, and each costs a host fault. Data beside code that is stored to again and
//! again, or code that is patched all the time, would make that the rule: then the frame's blocks are forgotten, and it is
//! watched no longer. Where that comes a second time, code and data are both in use. Such a *mixed* frame is not watched
//! either; its blocks check their own source whenever they are entered ([`super::translate`]). That is dear, and not always
//! for ever: a kernel patches its own text while it starts. So it is watched again after a while, and after ever longer
//! ones if it turns out to be mixed still.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::block::Origin;
use super::mode::Mode;
use super::segment;
use crate::mmu::{FRAME_SIZE, GuestRam};

/// Stores to a frame that changed no code after which its code is forgotten, so that they need not be watched.
const DATA_WRITES: u32 = 16;
/// Stores to a frame that changed code after which the same is done: what is patched so often need not be told of it.
const CODE_WRITES: u32 = 256;
/// Times that its code was forgotten so after which a frame is mixed.
const MIXED_AFTER: u32 = 2;
/// Calls of [`Frames::due`] until a mixed frame is watched again, at first and at most.
const MIXED_FOR: (u64, u64) = (64, 1 << 14);

/// How a frame's blocks come to know of stores to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Stores are watched.
    Watched,
    /// There are no blocks.
    Forgotten,
    /// Each block checks its own source.
    Mixed,
}

/// Words of 64 bits for one bit an offset in a page.
const WORDS: usize = FRAME_SIZE / 64;

/// A frame seen as code of one mode at one linear page.
pub struct View {
    /// The blocks, live or not.
    blocks: Vec<u32>,
    /// One bit for each offset in the page where a block had a place to come in when it was added.
    entries: [u64; WORDS],
    /// How many of those bits there are before each word.
    before: [u16; WORDS],
    /// For each of those bits, in order, that block.
    entered: Vec<u32>,
}

/// A frame that code was translated from.
pub struct Frame {
    /// By linear page and mode: a library's frame has as many as there are programs, each with it at another address.
    views: HashMap<(u32, Mode), Box<View>, RandomState>,
    /// Its bytes when last looked at.
    pub bytes: [u8; FRAME_SIZE],
    /// Stores since then that changed no code.
    data_writes: u32,
    /// Stores that changed code since it was last forgotten.
    code_writes: u32,
    /// Times that its blocks were forgotten because of such stores.
    forgotten: u32,
    /// For how long it is mixed the next time.
    mixed_for: u64,
    care: Care,
}

/// All of them, by physical address.
pub struct Frames {
    frames: HashMap<u64, Box<Frame>, RandomState>,
    /// Views of all of them.
    views: usize,
    /// What a frame begins as.
    first: Care,
    /// Calls of [`Self::due`].
    time: u64,
    /// When mixed frames are to be watched again, and which.
    mixed: Vec<(u64, u64)>,
}

impl Default for Frames {
    fn default() -> Self {
        Self { frames: HashMap::default(), views: 0, first: Care::Forgotten, time: 0, mixed: Vec::new() }
    }
}

impl View {
    /// The block, live or not, that had a place to come in at `eip` when it was added.
    pub fn entry(&self, eip: u32) -> Option<u32> {
        self.has(eip).then(|| self.entered[self.rank(eip)])
    }

    fn has(&self, eip: u32) -> bool {
        self.entries[eip as usize % FRAME_SIZE / 64] >> (eip % 64) & 1 != 0
    }

    /// How many entries there are before `eip`.
    fn rank(&self, eip: u32) -> usize {
        let word = eip as usize % FRAME_SIZE / 64;
        let below = self.entries[word] & ((1 << (eip % 64)) - 1);
        self.before[word] as usize + below.count_ones() as usize
    }

    /// Says that block `id` can be come into at `eip`, unless `stays`, given another, says that it can be there.
    fn enter(&mut self, eip: u32, id: u32, stays: impl Fn(u32) -> bool) {
        let rank = self.rank(eip);
        if !self.has(eip) {
            let word = eip as usize % FRAME_SIZE / 64;
            self.entered.insert(rank, id);
            self.entries[word] |= 1 << (eip % 64);
            self.before[word + 1..].iter_mut().for_each(|before| *before += 1);
        } else if !stays(self.entered[rank]) {
            self.entered[rank] = id;
        }
    }

    /// Forgets the blocks of `segment`.
    fn remove_segment(&mut self, segment: usize) {
        let gone = |id: &u32| segment::split(*id).0 == segment;
        if !self.blocks.iter().chain(&self.entered).any(gone) {
            return;
        }
        self.blocks.retain(|id| !gone(id));
        let mut rank = 0;
        for offset in 0..FRAME_SIZE as u32 {
            if self.has(offset) {
                let id = self.entered[rank];
                rank += 1;
                if gone(&id) {
                    self.entries[offset as usize / 64] &= !(1 << (offset % 64));
                }
            }
        }
        self.entered.retain(|id| !gone(id));
        let mut count = 0;
        for (before, word) in self.before.iter_mut().zip(&self.entries) {
            *before = count;
            count += word.count_ones() as u16;
        }
    }
}

impl Frame {
    /// True if stores to it must be reported.
    pub fn watched(&self) -> bool {
        self.care == Care::Watched
    }

    /// True if its blocks check their own source.
    pub fn mixed(&self) -> bool {
        self.care == Care::Mixed
    }

    /// This frame as code of `mode` at linear address `eip`.
    pub fn view(&self, eip: u32, mode: Mode) -> Option<&View> {
        self.views.get(&(eip >> 12, mode)).map(|v| &**v)
    }

    /// Takes out all blocks, whose views were counted in `views`.
    fn forget(&mut self, views: &mut usize) -> Vec<u32> {
        *views -= self.views.len();
        self.care = Care::Forgotten;
        std::mem::take(&mut self.views).into_values().flat_map(|v| v.blocks).collect()
    }

    /// See [`Frames::add`].
    fn add(&mut self, id: u32, eip: u32, mode: Mode, origins: &[Origin], stays: impl Fn(u32) -> bool) {
        let view = self.views.entry((eip >> 12, mode)).or_insert_with(|| {
            let (entries, before) = ([0; WORDS], [0; WORDS]);
            Box::new(View { blocks: Vec::new(), entries, before, entered: Vec::new() })
        });
        view.blocks.push(id);
        origins.iter().filter(|o| o.is_entry()).for_each(|o| view.enter(o.eip, id, &stays));
    }

    /// The frame at `gpa` was stored to: takes out the blocks for which `reads`, given a block and what changed, is true.
    /// They are returned, and whether the frame is to be watched on.
    pub fn refresh(&mut self, ram: &GuestRam, gpa: u64, reads: impl Fn(u32, &[usize]) -> bool) -> (Vec<u32>, bool) {
        if self.care != Care::Watched {
            return (Vec::new(), false);
        }
        let before = self.bytes;
        ram.read(gpa, &mut self.bytes);
        let now = &self.bytes;
        let lines = (0..FRAME_SIZE).step_by(64).filter(|&line| before[line..line + 64] != now[line..line + 64]);
        let changed: Vec<usize> = lines.flat_map(|line| line..line + 64).filter(|&i| before[i] != now[i]).collect();
        let mut dead = Vec::new();
        for view in self.views.values_mut() {
            dead.extend(view.blocks.extract_if(.., |id| reads(*id, &changed)));
        }
        match dead.is_empty() {
            true => self.data_writes += 1,
            false => (self.data_writes, self.code_writes) = (0, self.code_writes + 1),
        }
        let used = self.views.values().any(|v| !v.blocks.is_empty());
        (dead, used && self.data_writes < DATA_WRITES && self.code_writes < CODE_WRITES)
    }
}

impl Frames {
    /// Takes every frame to be mixed from now on.
    #[cfg(test)]
    pub fn mix_all(&mut self) {
        self.first = Care::Mixed;
    }

    /// The frame at `gpa`, copied from `ram` unless it is watched since it was copied.
    pub fn note(&mut self, ram: &GuestRam, gpa: u64) -> &mut Frame {
        let frame = self.frames.entry(gpa).or_insert_with(|| {
            let (views, bytes, mixed_for) = (HashMap::default(), [0; FRAME_SIZE], MIXED_FOR.0);
            Box::new(Frame { views, bytes, data_writes: 0, code_writes: 0, forgotten: 0, mixed_for, care: self.first })
        });
        if frame.care != Care::Watched {
            ram.read(gpa, &mut frame.bytes);
        }
        if frame.care == Care::Forgotten {
            (frame.care, frame.data_writes, frame.code_writes) = (Care::Watched, 0, 0);
        }
        frame
    }

    /// Notes block `id` from the frame at `gpa`, code of `mode` from linear address `eip` on that can be come into at
    /// `origins`. Where another can be already, `stays` says whether it does.
    pub fn add(
        &mut self,
        ram: &GuestRam,
        (id, gpa): (u32, u64),
        (eip, mode): (u32, Mode),
        origins: &[Origin],
        stays: impl Fn(u32) -> bool,
    ) {
        let frame = self.note(ram, gpa);
        let before = frame.views.len();
        frame.add(id, eip, mode, origins, stays);
        self.views += self.frames.get(&gpa).map_or(0, |f| f.views.len() - before);
    }

    /// The frame at `gpa`, if code was translated from it.
    pub fn get(&self, gpa: u64) -> Option<&Frame> {
        self.frames.get(&gpa).map(|f| &**f)
    }

    /// As [`Self::get`].
    pub fn get_mut(&mut self, gpa: u64) -> Option<&mut Frame> {
        self.frames.get_mut(&gpa).map(|f| &mut **f)
    }

    /// The frame at `gpa` is not to be watched on: forgets and returns the blocks that came from it.
    pub fn forget(&mut self, gpa: u64) -> Vec<u32> {
        let Some(frame) = self.frames.get_mut(&gpa).filter(|f| f.watched()) else { return Vec::new() };
        let blocks = frame.forget(&mut self.views);
        frame.forgotten += 1;
        if blocks.is_empty() {
            // It became something else altogether.
            self.frames.remove(&gpa);
        } else if frame.forgotten >= MIXED_AFTER {
            frame.care = Care::Mixed;
            self.mixed.push((self.time + frame.mixed_for, gpa));
            frame.mixed_for = (frame.mixed_for * 2).min(MIXED_FOR.1);
        }
        blocks
    }

    /// Some time has passed, about as much each time: the mixed frames that it is time to watch again.
    pub fn due(&mut self) -> Vec<u64> {
        self.time += 1;
        let now = self.time;
        self.mixed.extract_if(.., |(when, _)| *when <= now).map(|(_, gpa)| gpa).collect()
    }

    /// The frame at `gpa`, if it is mixed, is to be watched again: forgets and returns the blocks that came from it. It is
    /// mixed again the next time that its code is forgotten.
    pub fn try_again(&mut self, gpa: u64) -> Vec<u32> {
        let Some(frame) = self.frames.get_mut(&gpa).filter(|f| f.mixed()) else { return Vec::new() };
        frame.forgotten = MIXED_AFTER - 1;
        frame.forget(&mut self.views)
    }

    /// How many are mixed.
    pub fn mixed(&self) -> usize {
        self.frames.values().filter(|f| f.mixed()).count()
    }

    /// Forgets the blocks of `segment`, and the frames that no other block comes from: the latter's addresses.
    pub fn remove_segment(&mut self, segment: usize) -> Vec<u64> {
        for frame in self.frames.values_mut() {
            frame.views.retain(|_, view| {
                view.remove_segment(segment);
                !view.blocks.is_empty()
            });
        }
        self.views = self.frames.values().map(|frame| frame.views.len()).sum();
        let gone = self.frames.extract_if(|_, frame| frame.views.is_empty()).map(|(gpa, _)| gpa).collect();
        self.mixed.retain(|(_, gpa)| self.frames.contains_key(gpa));
        gone
    }

    /// Physical addresses of the frames that are watched and lie, if only in part, in `start..end`.
    pub fn watched_in(&self, start: u64, end: u64) -> Vec<u64> {
        let first = start & !(FRAME_SIZE as u64 - 1);
        let watched = |gpa: &u64| self.frames.get(gpa).is_some_and(|frame| frame.watched());
        match end.saturating_sub(first) / FRAME_SIZE as u64 <= self.frames.len() as u64 {
            true => (first..end).step_by(FRAME_SIZE).filter(watched).collect(),
            false => self.frames.keys().copied().filter(|gpa| (first..end).contains(gpa) && watched(gpa)).collect(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// As how many pages and modes they were seen.
    pub fn views(&self) -> usize {
        self.views
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        let views = self
            .frames
            .values()
            .flat_map(|f| f.views.values())
            .map(|v| size_of::<View>() + 4 * (v.blocks.len() + v.entered.len()));
        self.frames.len() * (size_of::<Frame>() + 32) + views.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has `frames` take the frame at 0 to be mixed, from being watched.
    fn mix(frames: &mut Frames, ram: &GuestRam) {
        for _ in 0..MIXED_AFTER {
            if frames.get(0).is_some_and(Frame::mixed) {
                return;
            }
            let mode = Mode::of(&crate::engine::translate::tests::machine(&[])).unwrap();
            frames.add(ram, (7, 0), (0, mode), &[], |_| false);
            assert_eq!(frames.forget(0), [7]);
        }
    }

    #[test]
    fn what_is_mixed_is_watched_again_after_ever_longer_times() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut frames = Frames::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            mix(&mut frames, &ram);
            assert!(frames.get(0).unwrap().mixed() && frames.mixed() == 1);
            waits.push((1..).find(|_| frames.due() == [0]).unwrap());
            frames.try_again(0);
            assert!(frames.note(&ram, 0).watched() && frames.views() == 0);
        }
        assert!(waits.windows(2).all(|w| w[1] == (w[0] * 2).min(MIXED_FOR.1)), "{waits:?}");
        assert_eq!((waits[0], waits[11]), MIXED_FOR);
    }

    #[test]
    fn a_frame_that_went_meanwhile_is_not_tried_again() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut frames = Frames::default();
        mix(&mut frames, &ram);
        frames.remove_segment(0);
        assert!(frames.get(0).is_none() && frames.mixed.is_empty());
        assert!(frames.try_again(0).is_empty());
    }

    #[test]
    fn what_is_watched_is_found_by_range() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let mut frames = Frames::default();
        for gpa in [0x1000, 0x3000, 0x8000] {
            frames.note(&ram, gpa);
        }
        let found = |start, end| {
            let mut found = frames.watched_in(start, end);
            found.sort_unstable();
            found
        };
        assert_eq!(found(0, u64::MAX), [0x1000, 0x3000, 0x8000]);
        assert_eq!(found(0x1fff, 0x8000), [0x1000, 0x3000]);
        assert_eq!(found(0x1fff, 0x2000), [0x1000]);
        assert_eq!((found(0x2000, 0x3000), found(0x3000, 0x3000)), (vec![], vec![]));
        assert_eq!(found(0x3001, 0x3002), [0x3000]);
    }
}
