//! What the engine counts, and how `--stats` calls it.

use iced_x86::Mnemonic;

use super::Translator;

/// Counters for `--stats`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stats {
    pub(super) blocks: u64,
    pub(super) guest_instructions: u64,
    pub(super) host_bytes: u64,
    pub(super) checked: u64,
    pub(super) invalidations: u64,
    pub(super) code_stores: u64,
    pub(super) evictions: u64,
    pub(super) exits_direct: u64,
    pub(super) exits_indirect: u64,
    pub(super) exits_interpret: u64,
    pub(super) exits_fault: u64,
    pub(super) exits_pending: u64,
    pub(super) exits_kick: u64,
    pub(super) exits_tripped: u64,
    pub(super) stale: u64,
    pub(super) interpreted: u64,
    pub(super) learnt_dynamic: u64,
    pub(super) learnt_interpreted: u64,
    pub(super) learnt_varied: u64,
    pub(super) learnt_wrapping: u64,
    pub(super) learnt_faulting: u64,
    pub(super) spared: u64,
    pub(super) joined: u64,
    pub(super) charted: u64,
    pub(super) activations: u64,
}

impl Translator {
    /// Every counter, and the instructions left to the interpreter by kind.
    pub(super) fn counters(&self) -> Vec<(String, u64)> {
        let (s, w) = (&self.stats, &self.shadow.stats);
        let counters = [
            ("blocks translated", s.blocks),
            ("guest instructions translated", s.guest_instructions),
            ("host bytes emitted", s.host_bytes),
            ("blocks checked", s.checked),
            ("blocks invalidated", s.invalidations),
            ("stores to code pages", s.code_stores),
            ("pages that mix code and data", self.registry.mixed() as u64),
            ("code cache segments evicted", s.evictions),
            ("translation records, bytes", self.registry.bytes() as u64),
            ("exits: direct branch", s.exits_direct),
            ("exits: indirect branch", s.exits_indirect),
            ("exits: interpret", s.exits_interpret),
            ("exits: fault", s.exits_fault),
            ("exits: pending", s.exits_pending),
            ("exits: kick", s.exits_kick),
            ("exits: tripwire", s.exits_tripped),
            ("blocks that found their source changed", s.stale),
            ("instructions interpreted", s.interpreted),
            ("sites learnt: picks its window", s.learnt_dynamic),
            ("sites learnt: reaches a device", s.learnt_interpreted),
            ("sites learnt: come to for other EIPs", s.learnt_varied),
            ("sites learnt: comes round the address space", s.learnt_wrapping),
            ("sites learnt: keeps faulting", s.learnt_faulting),
            ("instructions interpreted to spare a fault", s.spared),
            ("branches joined to other pages", s.joined),
            ("indirect branches that went by the chart", s.charted),
            ("window switches", s.activations),
            ("shadow faults", w.faults),
            ("pages mapped as page-fault handlers returned", w.anticipated),
            ("pages mapped", w.pages_mapped),
            ("pages unmapped", w.pages_unmapped),
            ("pages write-protected", w.pages_protected),
            ("windows made", w.windows_made),
            ("windows evicted", w.windows_evicted),
            ("each address space has its own supervisor window", self.shadow.kernel_is_local() as u64),
            ("windows synchronised", w.syncs),
            ("page tables found changed", w.tables_changed),
        ];
        let named = counters.into_iter().map(|(name, value)| (name.to_string(), value));
        let mut kinds: Vec<_> = Mnemonic::values()
            .zip(&self.assists)
            .filter(|(_, count)| **count != 0)
            .map(|(kind, count)| (format!("assist: {kind:?}"), *count))
            .collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        named.chain(kinds).collect()
    }
}
