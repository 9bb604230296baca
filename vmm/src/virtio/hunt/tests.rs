use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn ids(chains: impl IntoIterator<Item = u16>) -> Vec<Id> {
    chains.into_iter().map(|chain| Id { queue: usize::from(chain % 3), chain }).collect()
}

/// A process that takes what it is given in order, and what becomes of it.
struct Processes<'a> {
    /// Whether a process that has carried out the first crashes at the second; with no first, whether it does at all.
    crashes: &'a dyn Fn(&[Id], Id) -> bool,
    /// How often one is killed from outside instead, after so many requests.
    kills: Vec<usize>,
}

/// What became of a batch of requests.
#[derive(Debug, Default)]
struct End {
    completed: Vec<Id>,
    failed: Vec<Id>,
    faults: usize,
}

/// Plays device model, broker and processes until no request is left or there were `most` faults.
fn play(requests: &[Id], mut processes: Processes<'_>, most: usize) -> End {
    let (mut hunt, mut end, mut left) = (Hunt::default(), End::default(), requests.to_vec());
    while !left.is_empty() && end.faults < most {
        // One process: what it has done, what is out.
        let (mut done, mut kill) = (Vec::new(), processes.kills.pop());
        loop {
            hunt.clear(|id| left.contains(&id));
            let out = hunt.on_trial().map_or(left.clone(), |only| vec![only]);
            assert!(out.iter().all(|id| left.contains(id)), "nobody is given what has come back");
            let Some(next) = out.first().copied() else { return end };
            let killed = kill.as_mut().is_some_and(|after| std::mem::replace(after, after.saturating_sub(1)) == 0);
            let crashed = !killed && (processes.crashes)(&done, next);
            if killed || crashed {
                hunt.ended(out);
                hunt.judged(crashed);
                end.faults += usize::from(crashed);
                break;
            }
            done.push(next);
            left.retain(|id| *id != next);
            end.completed.push(next);
        }
        while let Some((id, among)) = hunt.take_convict() {
            assert!(usize::from(among) <= requests.len() && among > 0);
            left.retain(|other| *other != id);
            end.failed.push(id);
        }
    }
    end
}

#[test]
fn one_of_32_is_found_in_three_deaths_wherever_it_is() {
    for bad in 0..32 {
        let all = ids(0..32);
        let crashes = |_: &[Id], id: Id| id.chain == bad;
        let end = play(&all, Processes { crashes: &crashes, kills: vec![] }, 99);
        // The last of a row may be alone already when it crashes its first process.
        let deaths = if bad == 31 { 2 } else { 3 };
        assert_eq!((end.failed, end.completed.len(), end.faults), (ids([bad]), 31, deaths), "{bad}");
    }
}

#[test]
fn what_crashes_only_together_is_carried_out_one_by_one() {
    // The second crashes whoever has the first out beside it.
    let mut hunt = Hunt::default();
    let all = ids(0..8);
    hunt.ended(all.clone());
    hunt.judged(true);
    for id in &all {
        assert_eq!(hunt.on_trial(), Some(*id));
        hunt.clear(|other| other.chain > id.chain);
    }
    assert!(hunt.on_trial().is_none() && hunt.take_convict().is_none());
    // The second crashes who carried out the first: its next process has not.
    let crashes = |done: &[Id], id: Id| id.chain == 5 && done.iter().any(|id| id.chain == 2);
    let end = play(&all, Processes { crashes: &crashes, kills: vec![] }, 99);
    assert_eq!((end.failed, end.completed.len()), (vec![], 8));
}

#[test]
fn nobody_is_blamed_for_a_death_that_nothing_was_out_at_or_that_came_from_outside() {
    let mut hunt = Hunt::default();
    for _ in 0..9 {
        hunt.ended(vec![]);
        hunt.judged(true);
        hunt.ended(ids([4]));
        hunt.judged(false);
        hunt.judged(true);
    }
    assert!(hunt.on_trial().is_none() && hunt.take_convict().is_none());
    // A verdict that comes after a reset is about nobody, and a new life begins without suspects.
    hunt.ended(ids([4]));
    hunt.reset();
    hunt.judged(true);
    assert!(hunt.on_trial().is_none());
    hunt.ended(ids([4]));
    hunt.judged(true);
    hunt.ended(ids([4]));
    hunt.judged(true);
    hunt.reset();
    assert!(hunt.take_convict().is_none());
}

#[test]
fn processes_that_crash_whatever_they_have_convict_no_more_than_one_for_two_of_them() {
    let end = play(&ids(0..32), Processes { crashes: &|_, _| true, kills: vec![] }, 9);
    assert_eq!((end.failed.len(), end.completed.len()), (4, 0), "the broker gives up after so many");
}

proptest! {
    /// Whatever crashes, and whoever is killed meanwhile: each poison request fails, each other one is completed once.
    #[test]
    fn exactly_the_poison_requests_fail(
        count in 1u16..64,
        poison in proptest::collection::btree_set(0u16..64, 0..9),
        kills in proptest::collection::vec(0usize..40, 0..20),
    ) {
        let all = ids(0..count);
        let crashes = |_: &[Id], id: Id| poison.contains(&id.chain);
        let killed = kills.len();
        let end = play(&all, Processes { crashes: &crashes, kills }, 999);
        let failed: BTreeSet<u16> = end.failed.iter().map(|id| id.chain).collect();
        let wanted: BTreeSet<u16> = poison.iter().copied().filter(|chain| *chain < count).collect();
        prop_assert_eq!(failed.len(), end.failed.len());
        prop_assert_eq!(&failed, &wanted);
        let completed: BTreeSet<u16> = end.completed.iter().map(|id| id.chain).collect();
        prop_assert_eq!(completed.len(), end.completed.len());
        prop_assert_eq!(completed.len() + failed.len(), usize::from(count));
        prop_assert!(end.faults <= 1 + 2 * wanted.len(), "{} faults, {} kills", end.faults, killed);
    }

    /// Requests that crash their process now and then: each comes to its end, and only those that crash may fail.
    #[test]
    fn who_crashes_now_and_then_fails_or_not_and_nobody_else(
        moody in proptest::collection::btree_set(0u16..32, 0..6),
        moods in proptest::collection::vec(any::<bool>(), 256),
    ) {
        let turn = std::cell::Cell::new(0);
        let crashes = |_: &[Id], id: Id| {
            turn.set(turn.get() + 1);
            moody.contains(&id.chain) && moods[turn.get() % moods.len()]
        };
        let end = play(&ids(0..32), Processes { crashes: &crashes, kills: vec![] }, 999);
        prop_assert_eq!(end.completed.len() + end.failed.len(), 32);
        prop_assert!(end.failed.iter().all(|id| moody.contains(&id.chain)));
    }
}
