//! The contract of [`Account`], for both backends: the files, and the module, of which a stand-in keeps the very ledger that the module
//! keeps (`kernel/core`), without a kernel.
#![allow(clippy::unwrap_used)] // In the functions that the tests share.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use emuv_kernel_client::{News, abi::Query};
use emuv_kernel_core::ledger;
use emuv_policy::Bytes;
use proptest::prelude::*;

use super::*;
use crate::slices::{
    FileAccount, Registry, Slice, SliceUser, admin::tests::registry, definition::tests::slice, registry::DEFINITION,
};

/// What is behind the nodes of an instance.
#[derive(Debug)]
struct Instance {
    ledger: Mutex<ledger::Ledger>,
    news: Condvar,
}

/// An open node.
#[derive(Debug)]
struct StandIn {
    instance: Arc<Instance>,
    account: Mutex<Option<ledger::Account>>,
    label: &'static str,
}

impl Instance {
    fn new(vram: u64, ram: u64) -> Arc<Self> {
        let ledger = ledger::Ledger::new(ledger::Amount::new(vram, ram));
        Arc::new(Self { ledger: Mutex::new(ledger), news: Condvar::new() })
    }

    fn change(&self, change: impl FnOnce(&mut ledger::Ledger)) {
        change(&mut self.ledger.lock().unwrap());
        self.news.notify_all();
    }

    fn open(self: &Arc<Self>, label: &'static str) -> StandIn {
        let account = self.ledger.lock().unwrap().open().unwrap();
        StandIn { instance: Arc::clone(self), account: Mutex::new(Some(account)), label }
    }
}

impl StandIn {
    fn with<T>(&self, act: impl FnOnce(&mut ledger::Ledger, &mut ledger::Account) -> T) -> T {
        let mut ledger = self.instance.ledger.lock().unwrap();
        act(&mut ledger, self.account.lock().unwrap().as_mut().unwrap())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let account = self.account.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.instance.change(|ledger| ledger.close(account));
    }
}

fn core(amount: Amount) -> ledger::Amount {
    ledger::Amount::new(amount.vram_bytes, amount.ram_bytes)
}

fn left(ledger: &ledger::Ledger) -> Amount {
    let left = ledger.left();
    Amount { vram_bytes: left.vram_bytes, ram_bytes: left.ram_bytes }
}

impl Ledger for StandIn {
    fn charge(&self, amount: Amount) -> Result<Amount, NodeRefused> {
        self.with(|ledger, account| match ledger.charge(account, core(amount)) {
            Ok(()) => Ok(left(ledger)),
            Err(ledger::Refusal::NoRoom(_)) => Err(NodeRefused::NoRoom(left(ledger))),
            Err(ledger::Refusal::Removed) => Err(NodeRefused::Removed),
            Err(other) => Err(NodeRefused::Failed(io::Error::other(format!("{other:?}")))),
        })
    }

    fn release(&self, amount: Amount) -> io::Result<Amount> {
        let released = self.with(|ledger, account| ledger.release(account, core(amount)).map(|()| left(ledger)));
        self.instance.news.notify_all();
        released.map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    fn query(&self) -> io::Result<Query> {
        let mut query = Query { instance_id: 1, ..Query::default() };
        query.label[..self.label.len()].copy_from_slice(self.label.as_bytes());
        self.with(|ledger, account| {
            let (limits, used, own) = (ledger.see_limits(account), ledger.used(), account.held());
            (query.vram_limit_bytes, query.ram_limit_bytes) = (limits.vram_bytes, limits.ram_bytes);
            (query.vram_used_bytes, query.ram_used_bytes) = (used.vram_bytes, used.ram_bytes);
            (query.own_vram_bytes, query.own_ram_bytes) = (own.vram_bytes, own.ram_bytes);
            (query.holders, query.generation) = (ledger.holders(), ledger.generation());
        });
        Ok(query)
    }

    fn wait(&self, room: bool, timeout: Duration) -> io::Result<News> {
        let is_news = |news: ledger::News| news.limits || news.removed || (room && news.room);
        let waited = self.instance.news.wait_timeout_while(self.instance.ledger.lock().unwrap(), timeout, |ledger| {
            !is_news(ledger.news(self.account.lock().unwrap().as_ref().unwrap()))
        });
        let news = waited.unwrap().0.news(self.account.lock().unwrap().as_ref().unwrap());
        Ok(News { limits: news.limits, room: room && news.room, removed: news.removed })
    }

    fn leave(&self, _: &OwnedFd) {}
}

const GIB: u64 = 1 << 30;

/// A slice `a` of 6 GiB and 2 GiB, with either backend.
struct Setup {
    _folder: tempfile::TempDir,
    registry: Registry,
    entry: Entry,
    instance: Option<Arc<Instance>>,
}

impl Setup {
    fn new(by_module: bool) -> Self {
        let (folder, registry) = registry();
        let user = SliceUser { uid: rustix::process::geteuid().as_raw(), gid: None };
        let plain = Slice { instance: 0, enabled: true, by_module: false, user, ..slice("a") };
        let mut entry = registry.create(plain).unwrap();
        if by_module {
            // As it is where the module was loaded.
            entry.slice.by_module = true;
            std::fs::write(entry.dir.join(DEFINITION), entry.slice.to_text()).unwrap();
        }
        let instance = by_module.then(|| Instance::new(6 * GIB, 2 * GIB));
        Self { _folder: folder, registry, entry, instance }
    }

    fn both() -> [Self; 2] {
        [Self::new(false), Self::new(true)]
    }

    fn open(&self) -> Box<dyn Account> {
        match &self.instance {
            Some(instance) => {
                Box::new(ModuleAccount::with(instance.open("a"), Path::new("/dev/emuv1"), &self.entry).unwrap())
            }
            None => Box::new(FileAccount::open(&self.entry).unwrap()),
        }
    }

    /// As `emuv vgpu resize` does, which tells the module first.
    fn resize(&self, vram: u64, ram: u64) {
        if let Some(instance) = &self.instance {
            instance.change(|ledger| assert!(ledger.resize(ledger::Amount::new(vram, ram))));
        }
        self.define(|slice| (slice.vram, slice.ram) = (Bytes(vram), Bytes(ram)));
    }

    fn define(&self, change: impl FnOnce(&mut Slice)) {
        let mut slice = self.registry.entry("a").unwrap().slice;
        change(&mut slice);
        let new = self.entry.dir.join("new");
        std::fs::write(&new, slice.to_text()).unwrap();
        std::fs::rename(new, self.entry.dir.join(DEFINITION)).unwrap();
    }
}

fn demand(vram: u64, ram: u64) -> Demand {
    Demand { vram, ram }
}

#[test]
fn both_tiers_are_charged_or_neither_and_all_is_given_back_at_the_end() {
    for setup in Setup::both() {
        let (one, two) = (setup.open(), setup.open());
        assert!(matches!(one.charge(demand(GIB, 3 * GIB)), Err(Refused::NoRoom)));
        assert_eq!(one.usage(), Usage::default());
        one.charge(demand(GIB, 2 * GIB)).unwrap();
        assert_eq!(two.usage(), Usage { vram: GIB, ram: 2 * GIB, own_vram: 0, own_ram: 0 });
        assert!(two.charge(demand(5 * GIB + 1, 0)).is_err() && two.charge(demand(0, 1)).is_err());
        one.release(demand(GIB / 2, GIB));
        assert_eq!(one.usage(), Usage { vram: GIB / 2, ram: GIB, own_vram: GIB / 2, own_ram: GIB });
        drop(one);
        assert_eq!((two.usage().vram, two.usage().ram, two.processes().len()), (0, 0, 1));
    }
}

#[test]
fn limits_count_from_the_next_charge_on_both_ways() {
    for setup in Setup::both() {
        let account = setup.open();
        account.charge(demand(4 * GIB, 0)).unwrap();
        setup.resize(3 * GIB, GIB);
        assert_eq!(account.limits(), SliceLimits { vram: 3 * GIB, ram: GIB, state: SliceState::Enabled });
        account.release(demand(GIB, 0));
        assert!(account.charge(demand(1, 0)).is_err(), "what is used is the limit");
        setup.resize(8 * GIB, GIB);
        account.charge(demand(5 * GIB, GIB)).unwrap();
    }
}

#[test]
fn a_change_wakes_who_waits_for_it() {
    for setup in Setup::both() {
        let account: Arc<dyn Account> = setup.open().into();
        let seen = account.limits();
        assert_eq!(account.wait_for_change(seen, Duration::ZERO), seen);
        for (change, expected) in [(true, SliceState::Enabled), (false, SliceState::Disabled)] {
            let seen = account.limits();
            let waiter = thread::spawn({
                let account = Arc::clone(&account);
                move || account.wait_for_change(seen, Duration::from_secs(600))
            });
            if change {
                setup.resize(5 * GIB, GIB);
            } else {
                setup.define(|slice| slice.enabled = false);
            }
            let now = waiter.join().unwrap();
            assert_eq!(now.state, expected);
            assert_ne!(now, seen);
        }
        assert!(account.charge(demand(1, 0)).is_err(), "a disabled slice gives nothing out");
    }
}

#[test]
fn an_instance_that_is_gone_is_a_removed_slice() {
    let setup = Setup::new(true);
    let (account, waiter) = (setup.open(), setup.open());
    account.charge(demand(GIB, 0)).unwrap();
    setup.instance.as_ref().unwrap().change(ledger::Ledger::remove);
    assert!(matches!(account.charge(demand(1, 0)), Err(Refused::NoRoom)));
    assert_eq!(account.limits().state, SliceState::Removed);
    let seen = SliceLimits { vram: 6 * GIB, ram: 2 * GIB, state: SliceState::Enabled };
    assert_eq!(waiter.wait_for_change(seen, Duration::from_secs(600)).state, SliceState::Removed);
    account.release(demand(GIB, 0));
    assert_eq!(account.usage().own_vram, 0, "what was held can be given back");
}

#[test]
fn the_node_of_another_slice_is_none() {
    let setup = Setup::new(true);
    let instance = setup.instance.as_ref().unwrap();
    let open = |label, entry: &Entry| ModuleAccount::with(instance.open(label), Path::new("/dev/emuv1"), entry);
    assert!(open("", &setup.entry).is_ok(), "module parameters made it");
    let error = open("b", &setup.entry).unwrap_err().to_string();
    assert!(error.contains("/dev/emuv1 is not its node: it is instance 1 'b'"), "{error}");
    let mut other = setup.entry.clone();
    other.slice.instance = 2;
    assert!(open("a", &other).is_err());
    other.slice.enabled = false;
    assert!(matches!(open("a", &other), Err(SliceError::Disabled(_))));
}

#[test]
fn without_a_node_the_slice_is_closed_and_the_files_do_not_take_its_place() {
    let mut setup = Setup::new(true);
    // No kernel has so many.
    setup.entry.slice.instance = 4711;
    let error = crate::slices::open(&setup.entry).unwrap_err().to_string();
    assert!(error.contains("/dev/emuv4711 is not its node") && error.contains("emuv vgpu enable a"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Against a plain sum, whichever keeps the account.
    #[test]
    fn a_charge_is_given_exactly_when_it_fits(
        steps in proptest::collection::vec((0_usize..3, 0_u8..3, 1_u64..40, 0_u64..40), 1..60)
    ) {
        for setup in Setup::both() {
            let accounts = [setup.open(), setup.open(), setup.open()];
            let mut own = [(0, 0); 3];
            let mut limits = (100, 80);
            setup.resize(100, 80);
            for &(who, what, vram, ram) in &steps {
                let sum = own.iter().fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
                match what {
                    0 => {
                        let given = accounts[who].charge(demand(vram, ram)).is_ok();
                        let fits = sum.0 + vram <= limits.0 && (ram == 0 || sum.1 + ram <= limits.1);
                        prop_assert_eq!(given, fits);
                        if given {
                            own[who] = (own[who].0 + vram, own[who].1 + ram);
                        }
                    }
                    1 => {
                        let (vram, ram) = (vram.min(own[who].0), ram.min(own[who].1));
                        accounts[who].release(demand(vram, ram));
                        own[who] = (own[who].0 - vram, own[who].1 - ram);
                    }
                    _ if limits != (60 + vram, 40 + ram) => {
                        limits = (60 + vram, 40 + ram);
                        setup.resize(limits.0, limits.1);
                    }
                    _ => {}
                }
                let usage = accounts[(who + 1) % 3].usage();
                let sum = own.iter().fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
                prop_assert_eq!((usage.vram, usage.ram), sum);
            }
        }
    }
}
