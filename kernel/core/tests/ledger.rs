//! The ledger's invariants over random histories, against a model that adds up in 128 bits. Failures print their seed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use emuv_kernel_core::ledger::{Account, Amount, Ledger, Refusal};
use proptest::prelude::*;

/// Something that happens to an instance. Accounts are named by their place in a list.
#[derive(Clone, Debug)]
enum Event {
    Open,
    Close(usize),
    Charge(usize, Amount),
    Release(usize, Amount),
    Page,
    PagesGone(u64),
    Resize(Amount),
    See(usize),
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..40_u64, 1 => Just(u64::MAX), 1 => u64::MAX - 60..=u64::MAX]
}

fn amount() -> impl Strategy<Value = Amount> {
    (bytes(), bytes()).prop_map(|(vram, ram)| Amount::new(vram, ram))
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Open),
        1 => (0..4_usize).prop_map(Event::Close),
        6 => (0..4_usize, amount()).prop_map(|(who, amount)| Event::Charge(who, amount)),
        4 => (0..4_usize, amount()).prop_map(|(who, amount)| Event::Release(who, amount)),
        2 => Just(Event::Page),
        1 => (0..30_u64).prop_map(Event::PagesGone),
        1 => amount().prop_map(Event::Resize),
        1 => (0..4_usize).prop_map(Event::See),
    ]
}

/// The figures that the ledger shows.
fn figures(ledger: &Ledger) -> (Amount, Amount, Amount, u64, u32, u64) {
    (ledger.limits(), ledger.used(), ledger.peak(), ledger.resident_bytes(), ledger.holders(), ledger.generation())
}

fn held_by_all(accounts: &[Option<Account>], ledger: &Ledger) -> (u128, u128) {
    let held = accounts.iter().flatten().map(Account::held);
    let (vram, ram) =
        held.fold((0, 0), |(vram, ram), held| (vram + u128::from(held.vram_bytes), ram + u128::from(held.ram_bytes)));
    (vram, ram + u128::from(ledger.resident_bytes()))
}

fn step(ledger: &mut Ledger, accounts: &mut Vec<Option<Account>>, event: &Event) {
    let before = figures(ledger);
    let limits = ledger.limits();
    match *event {
        Event::Open => accounts.push(Some(ledger.open().expect("an instance that is there can be opened"))),
        Event::Close(who) => {
            if let Some(account) = accounts.get_mut(who) {
                ledger.close(account);
                assert!(account.is_none());
            }
        }
        Event::Charge(who, amount) => {
            let Some(Some(account)) = accounts.get_mut(who) else { return };
            let held = account.held();
            match ledger.charge(account, amount) {
                Ok(()) => {
                    assert!(amount.vram_bytes == 0 || ledger.used().vram_bytes <= limits.vram_bytes);
                    assert!(amount.ram_bytes == 0 || ledger.used().ram_bytes <= limits.ram_bytes);
                    assert!(ledger.news(account).room);
                }
                Err(refusal) => {
                    assert_eq!((figures(ledger), account.held()), (before, held), "a refusal changes nothing");
                    if let Refusal::NoRoom(left) = refusal {
                        assert!(amount.vram_bytes > left.vram_bytes || amount.ram_bytes > left.ram_bytes);
                        assert!(!ledger.news(account).room, "who was refused waits for room");
                    }
                }
            }
        }
        Event::Release(who, amount) => {
            let Some(Some(account)) = accounts.get_mut(who) else { return };
            let held = account.held();
            let refused = ledger.release(account, amount).is_err();
            assert_eq!(refused, held.checked_sub(amount).is_none());
            if refused {
                assert_eq!((figures(ledger), account.held()), (before, held));
            }
        }
        Event::Page => {
            if ledger.charge_resident(7).is_err() {
                assert_eq!(figures(ledger), before);
            }
        }
        Event::PagesGone(bytes) => ledger.release_resident(bytes),
        Event::Resize(limits) => {
            let changed = ledger.resize(limits);
            assert_eq!(ledger.generation(), before.5 + u64::from(changed));
            assert_eq!((ledger.limits(), ledger.used()), (limits, before.1));
        }
        Event::See(who) => {
            let Some(Some(account)) = accounts.get_mut(who) else { return };
            assert_eq!(ledger.see_limits(account), limits);
            assert!(!ledger.news(account).limits);
        }
    }
}

proptest! {
    // Miri is some thousand times slower.
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 2000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_books_are_exact(limits in amount(), history in proptest::collection::vec(event(), 1..80)) {
        let mut ledger = Ledger::new(limits);
        let mut accounts = Vec::new();
        let mut most = Amount::default();
        for event in &history {
            step(&mut ledger, &mut accounts, event);
            let used = ledger.used();
            prop_assert_eq!((u128::from(used.vram_bytes), u128::from(used.ram_bytes)), held_by_all(&accounts, &ledger));
            most = Amount::new(most.vram_bytes.max(used.vram_bytes), most.ram_bytes.max(used.ram_bytes));
            prop_assert_eq!(ledger.peak(), most);
            prop_assert_eq!(ledger.holders() as usize, accounts.iter().flatten().count());
        }
        accounts.iter_mut().for_each(|account| ledger.close(account));
        ledger.release_resident(u64::MAX);
        prop_assert_eq!((ledger.used(), ledger.holders()), (Amount::default(), 0));
    }
}

#[test]
fn a_removed_instance_gives_nothing_and_takes_back_what_is_held() {
    let mut ledger = Ledger::new(Amount::new(10, 10));
    let mut account = ledger.open().unwrap();
    ledger.charge(&mut account, Amount::new(4, 5)).unwrap();
    ledger.remove();
    assert_eq!(ledger.charge(&mut account, Amount::new(1, 0)), Err(Refusal::Removed));
    assert_eq!(ledger.charge_resident(1), Err(Refusal::Removed));
    assert_eq!(ledger.open(), Err(Refusal::Removed));
    assert!(ledger.news(&account).removed);
    ledger.release(&mut account, Amount::new(1, 1)).unwrap();
    ledger.close(&mut Some(account));
    assert_eq!(ledger.used(), Amount::default());
}

#[test]
fn who_was_refused_hears_of_room_made_by_others_and_of_new_limits() {
    let mut ledger = Ledger::new(Amount::new(10, 0));
    let (mut first, mut second) = (ledger.open().unwrap(), ledger.open().unwrap());
    ledger.charge(&mut first, Amount::new(8, 0)).unwrap();
    assert_eq!(ledger.charge(&mut second, Amount::new(4, 0)), Err(Refusal::NoRoom(Amount::new(2, 0))));
    ledger.release(&mut first, Amount::new(1, 0)).unwrap();
    assert!(!ledger.news(&second).room, "three are not four");
    ledger.resize(Amount::new(11, 0));
    assert!(ledger.news(&second).room && ledger.news(&second).limits);
    ledger.charge(&mut second, Amount::new(4, 0)).unwrap();
}

#[test]
fn a_limit_below_the_use_takes_nothing_away_and_gives_nothing() {
    let mut ledger = Ledger::new(Amount::new(10, 10));
    let mut account = ledger.open().unwrap();
    ledger.charge(&mut account, Amount::new(8, 0)).unwrap();
    ledger.resize(Amount::new(4, 10));
    assert_eq!((ledger.used().vram_bytes, ledger.left().vram_bytes), (8, 0));
    assert_eq!(ledger.charge(&mut account, Amount::new(1, 0)), Err(Refusal::NoRoom(Amount::new(0, 10))));
    ledger.charge(&mut account, Amount::new(0, 10)).expect("the other tier has room");
    ledger.release(&mut account, Amount::new(5, 0)).unwrap();
    ledger.charge(&mut account, Amount::new(1, 0)).unwrap();
}
