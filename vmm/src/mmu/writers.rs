//! Which window pages can store to a frame: what must be write-protected when code is translated from that frame.
//!
//! One singly linked list per frame in one arena, since nearly every frame has one or two entries.

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    page: u32,
    window: u32,
    next: u32,
}

/// The reverse map of writable mappings.
pub struct Writers {
    heads: Vec<u32>,
    nodes: Vec<Node>,
    free: u32,
}

impl Writers {
    /// An empty map for `frames` RAM frames, numbered by their place in the RAM file.
    pub fn new(frames: usize) -> Self {
        Self { heads: vec![NONE; frames], nodes: Vec::new(), free: NONE }
    }

    /// Notes that `page` of `window` can store to `frame`.
    pub fn add(&mut self, frame: usize, window: usize, page: u32) {
        let node = Node { page, window: window as u32, next: self.heads[frame] };
        let index = if self.free != NONE {
            let i = self.free;
            self.free = self.nodes[i as usize].next;
            self.nodes[i as usize] = node;
            i
        } else {
            self.nodes.push(node);
            self.nodes.len() as u32 - 1
        };
        self.heads[frame] = index;
    }

    /// Forgets the notes on `frame` for which `keep`, given window and page, is false.
    pub fn retain(&mut self, frame: usize, keep: impl Fn(usize, u32) -> bool) {
        let mut previous = NONE;
        let mut at = self.heads[frame];
        while at != NONE {
            let Node { page, window, next } = self.nodes[at as usize];
            if keep(window as usize, page) {
                previous = at;
            } else {
                match previous {
                    NONE => self.heads[frame] = next,
                    p => self.nodes[p as usize].next = next,
                }
                self.nodes[at as usize].next = self.free;
                self.free = at;
            }
            at = next;
        }
    }

    /// The (window, page) pairs that can store to `frame`.
    pub fn of(&self, frame: usize) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        let mut at = self.heads[frame];
        while at != NONE {
            let node = self.nodes[at as usize];
            found.push((node.window as usize, node.page));
            at = node.next;
        }
        found
    }
}
