//! Small guests that check the processor's exact behaviour: see `tests::bare`. Each report is what the manual (Intel SDM
//! volume 3) demands; where QEMU's translator is known to differ from it, the test names the lines.

#[path = "bare/apic.rs"]
mod apic;
#[path = "bare/board.rs"]
mod board;
#[path = "bare/churn.rs"]
mod churn;
#[path = "bare/code.rs"]
mod code;
#[path = "bare/crossings.rs"]
mod crossings;
#[path = "bare/debug.rs"]
mod debug;
#[path = "bare/deliveries.rs"]
mod deliveries;
#[path = "bare/exceptions.rs"]
mod exceptions;
#[path = "bare/features.rs"]
mod features;
#[path = "bare/gates.rs"]
mod gates;
#[path = "bare/interrupts.rs"]
mod interrupts;
#[path = "bare/mappings.rs"]
mod mappings;
#[path = "bare/paging.rs"]
mod paging;
#[path = "bare/remembered.rs"]
mod remembered;
#[path = "bare/resets.rs"]
mod resets;
#[path = "bare/ring0_returns.rs"]
mod ring0_returns;
#[path = "bare/segments.rs"]
mod segments;
#[path = "bare/spaces.rs"]
mod spaces;
#[path = "bare/tasks.rs"]
mod tasks;
#[path = "bare/transitions.rs"]
mod transitions;
