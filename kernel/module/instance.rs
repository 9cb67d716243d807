// SPDX-License-Identifier: GPL-2.0

//! An instance, the openers that hold parts of it, the pages of its RAM part.

use core::fmt::Write;

use kernel::{
    alloc::flags::{GFP_KERNEL, GFP_KERNEL_ACCOUNT},
    new_mutex, new_poll_condvar,
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::{Arc, Mutex, poll::PollCondVar},
    xarray::{AllocKind, XArray},
};

use crate::{
    abi::{self, NAME_BYTES},
    ffi::{self, DmemRegion, DmemUnit, RamPage},
    ledger::{Account, Amount, Ledger, News, Refusal},
    registry,
    setup::{self, Config, Mistake},
    text::{self, Text},
};

/// A name in a fixed place, zero-terminated.
pub(crate) type Name = [u8; NAME_BYTES];

/// As much of `text` as a name holds.
pub(crate) fn name(text: &str) -> Name {
    let mut name = [0; NAME_BYTES];
    // What does not fit is left out; the last byte stays zero.
    let _ = Text::new(&mut name[..NAME_BYTES - 1]).write_str(text);
    name
}

/// One `/dev/emuvN`.
#[pin_data]
pub(crate) struct Instance {
    config: Config,
    label: Name,
    #[pin]
    state: Mutex<State>,
    /// Taken away when the instance is removed, so that another may have its name.
    #[pin]
    dmem: Mutex<Option<DmemRegion>>,
    /// Notified with every change that [`Ledger::news`] may tell somebody about.
    #[pin]
    pub(crate) changed: PollCondVar,
}

struct State {
    ledger: Ledger,
    /// There from the first opener to the last; always, if the instance is eager.
    pages: Option<Pages>,
}

/// Pages of the RAM part by their index.
struct Pages {
    by_index: Pin<KBox<XArray<RamPage>>>,
    count: u64,
    /// Above every index that has a page.
    end: usize,
}

impl Pages {
    fn new() -> Result<Self> {
        Ok(Self { by_index: KBox::pin_init(XArray::new(AllocKind::Alloc), GFP_KERNEL)?, count: 0, end: 0 })
    }

    fn bytes(&self) -> u64 {
        self.count * PAGE_SIZE as u64
    }

    fn get(&self, index: usize) -> Option<RamPage> {
        self.by_index.lock().get(index).map(|page| page.another())
    }

    fn put(&mut self, index: usize, page: RamPage) -> Result {
        self.by_index.lock().store(index, page, GFP_KERNEL)?;
        self.count += 1;
        self.end = self.end.max(index + 1);
        Ok(())
    }

    /// Clears every page. A page that somebody still has (a pipe, a transfer) is given up instead, so that they keep what they
    /// saw and see nothing new; says how many those were.
    fn wipe(&mut self) -> u64 {
        let mut given_up = 0;
        for index in 0..self.end {
            let mut pages = self.by_index.lock();
            let shared = match pages.get(index) {
                None => continue,
                Some(page) => page.is_shared(),
            };
            if shared {
                let page = pages.remove(index);
                drop(pages);
                drop(page);
                given_up += 1;
            } else {
                // With this lock held nobody gets at the page, and there is no opener.
                let page = pages.get(index).map(|page| page.another());
                drop(pages);
                page.iter().for_each(RamPage::clear);
            }
        }
        self.count -= given_up;
        given_up
    }
}

/// What became of an attempt to get at a page.
enum Found {
    Page(RamPage),
    /// Not there, and not to be made.
    Nothing,
    /// Not there; it has been charged and is to be made.
    Charged,
}

impl Instance {
    /// A new instance that nobody can reach yet. With all its pages, if it is eager.
    pub(crate) fn new(config: Config, label: Name) -> Result<Arc<Self>> {
        let state = State { ledger: Ledger::new(config.limits), pages: None };
        let dmem = DmemRegion::new(&registry::device_name(Some(config.instance_id)), config.limits.vram_bytes)?;
        let instance = Arc::pin_init(
            try_pin_init!(Self {
                config,
                label,
                state <- new_mutex!(state, "emuv_instance"),
                dmem <- new_mutex!(dmem, "emuv_dmem"),
                changed <- new_poll_condvar!("emuv_changed"),
            }),
            GFP_KERNEL,
        )?;
        if !config.lazy_allocation {
            setup::check_free(config.limits.ram_bytes, ffi::free_ram_bytes()).map_err(|mistake| complain(&mistake))?;
            instance.state.lock().pages = Some(Pages::new()?);
            for index in 0..instance.end_index() {
                drop(instance.page(index, true)?);
                if current!().signal_pending() {
                    return Err(EINTR);
                }
            }
        }
        Ok(instance)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn limits(&self) -> Amount {
        self.state.lock().ledger.limits()
    }

    /// Pages that the RAM part may have.
    fn end_index(&self) -> usize {
        (self.limits().ram_bytes >> PAGE_SHIFT) as usize
    }

    /// Bytes of the RAM part, whole pages.
    pub(crate) fn end_bytes(&self) -> u64 {
        (self.end_index() as u64) << PAGE_SHIFT
    }

    /// The page at `index`; made and charged if it is not there and `create`. Only for who keeps the pages: an opener, or
    /// [`Instance::new`].
    pub(crate) fn page(&self, index: usize, create: bool) -> Result<Option<RamPage>> {
        match self.find(index, create)? {
            Found::Page(page) => return Ok(Some(page)),
            Found::Nothing => return Ok(None),
            Found::Charged => {}
        }
        let fresh = RamPage::zeroed(!self.config.lazy_allocation);
        let mut state = self.state.lock();
        let State { ledger, pages } = &mut *state;
        let made = match (fresh, pages) {
            (Ok(fresh), Some(pages)) => match pages.get(index) {
                // Somebody was faster.
                Some(theirs) => {
                    ledger.release_resident(PAGE_SIZE as u64);
                    return Ok(Some(theirs));
                }
                None => {
                    let ours = fresh.another();
                    pages.put(index, fresh).map(|()| ours)
                }
            },
            (Err(error), _) => Err(error),
            (_, None) => Err(ENODEV),
        };
        if made.is_err() {
            ledger.release_resident(PAGE_SIZE as u64);
        }
        made.map(Some)
    }

    fn find(&self, index: usize, create: bool) -> Result<Found> {
        let mut state = self.state.lock();
        let State { ledger, pages } = &mut *state;
        let pages = pages.as_ref().ok_or(ENODEV)?;
        if let Some(page) = pages.get(index) {
            return Ok(Found::Page(page));
        }
        if index as u64 >= ledger.limits().ram_bytes >> PAGE_SHIFT {
            return Err(EFBIG);
        }
        if !create {
            return Ok(Found::Nothing);
        }
        match ledger.charge_resident(PAGE_SIZE as u64) {
            Ok(()) => Ok(Found::Charged),
            Err(Refusal::Removed) => Err(ENODEV),
            Err(_) => Err(ENOSPC),
        }
    }

    /// New limits, checked; waiters and user space hear of them.
    pub(crate) fn resize(&self, limit: impl FnOnce(Amount) -> Amount) -> Result {
        let mut state = self.state.lock();
        let limits = limit(state.ledger.limits());
        if let Err(mistake) = setup::check_limits(self.config.gpu, limits, ffi::ram_bytes()) {
            drop(state);
            return Err(complain(&mistake));
        }
        let changed = state.ledger.resize(limits);
        drop(state);
        if changed {
            self.changed.notify_all();
            ffi::changed(self.config.instance_id);
            if ffi::debug_mode() {
                pr_info!(
                    "emuv{}: limits are {} and {} bytes\n",
                    self.config.instance_id,
                    limits.vram_bytes,
                    limits.ram_bytes
                );
            }
        }
        Ok(())
    }

    /// Nothing new can be had from now on.
    pub(crate) fn remove(&self) {
        self.state.lock().ledger.remove();
        drop(self.dmem.lock().take());
        self.changed.notify_all();
    }

    /// Writes `attribute`, as `/sys/class/emuv/emuvN` shows it.
    pub(crate) fn show(&self, attribute: Attribute, into: &mut Text<'_>) -> Result {
        let state = self.state.lock();
        let ledger = &state.ledger;
        let (limits, used, peak) = (ledger.limits(), ledger.used(), ledger.peak());
        let shown = match attribute {
            Attribute::VramInfo => text::vram_info(into, &self.config, ledger),
            Attribute::Gpu => writeln!(into, "{}", self.config.gpu.name),
            Attribute::Label => writeln!(into, "{}", as_text(&self.label)),
            Attribute::InstanceId => writeln!(into, "{}", self.config.instance_id),
            Attribute::TotalBytes => writeln!(into, "{}", limits.vram_bytes.saturating_add(limits.ram_bytes)),
            Attribute::PhysicalBytes => writeln!(into, "{}", limits.vram_bytes),
            Attribute::VirtualBytes => writeln!(into, "{}", limits.ram_bytes),
            Attribute::PhysicalUsedBytes => writeln!(into, "{}", used.vram_bytes),
            Attribute::VirtualUsedBytes => writeln!(into, "{}", used.ram_bytes),
            Attribute::PhysicalPeakBytes => writeln!(into, "{}", peak.vram_bytes),
            Attribute::VirtualPeakBytes => writeln!(into, "{}", peak.ram_bytes),
            Attribute::ResidentBytes => writeln!(into, "{}", ledger.resident_bytes()),
            Attribute::Holders => writeln!(into, "{}", ledger.holders()),
            Attribute::Generation => writeln!(into, "{}", ledger.generation()),
        };
        shown.map_err(|_| EOVERFLOW)
    }

    /// Takes what was written to `attribute`.
    pub(crate) fn store(&self, attribute: Attribute, text: &[u8]) -> Result {
        let bytes = number(text)?;
        match attribute {
            Attribute::PhysicalBytes => self.resize(|limits| Amount { vram_bytes: bytes, ..limits }),
            Attribute::VirtualBytes => self.resize(|limits| Amount { ram_bytes: bytes, ..limits }),
            _ => Err(EPERM),
        }
    }
}

/// Attributes in the order of `EMUV_ATTRIBUTES` in `emuv_shim.h`.
#[derive(Clone, Copy)]
pub(crate) enum Attribute {
    VramInfo,
    Gpu,
    Label,
    InstanceId,
    TotalBytes,
    PhysicalBytes,
    VirtualBytes,
    PhysicalUsedBytes,
    VirtualUsedBytes,
    PhysicalPeakBytes,
    VirtualPeakBytes,
    ResidentBytes,
    Holders,
    Generation,
}

impl Attribute {
    pub(crate) const ALL: [Self; 14] = [
        Self::VramInfo,
        Self::Gpu,
        Self::Label,
        Self::InstanceId,
        Self::TotalBytes,
        Self::PhysicalBytes,
        Self::VirtualBytes,
        Self::PhysicalUsedBytes,
        Self::VirtualUsedBytes,
        Self::PhysicalPeakBytes,
        Self::VirtualPeakBytes,
        Self::ResidentBytes,
        Self::Holders,
        Self::Generation,
    ];
}

/// What an open file, or an exported buffer, holds of an instance. All of it is given back when it is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Opener {
    pub(crate) instance: Arc<Instance>,
    #[pin]
    account: Mutex<Option<Holding>>,
}

/// What an opener holds: in the instance's books, and the same VRAM in its cgroup's, rounded up to units.
struct Holding {
    account: Account,
    dmem: KVVec<DmemUnit>,
}

impl Holding {
    /// Charges or takes back units until they cover `held`. If the cgroup refuses, there are as many as before; fewer are
    /// never refused.
    fn settle(&mut self, held: Amount, region: &Mutex<Option<DmemRegion>>) -> Result {
        let wanted = held.vram_bytes.div_ceil(DmemUnit::BYTES) as usize;
        let before = self.dmem.len();
        if wanted <= before {
            self.dmem.truncate(wanted);
            return Ok(());
        }
        let region = region.lock();
        let Some(region) = &*region else { return Ok(()) };
        while self.dmem.len() < wanted {
            let charged = region.charge().and_then(|unit| Ok(self.dmem.push(unit, GFP_KERNEL_ACCOUNT)?));
            if let Err(error) = charged {
                self.dmem.truncate(before);
                // The controller says EAGAIN.
                return Err(if error == ENOMEM { ENOMEM } else { ENOSPC });
            }
        }
        Ok(())
    }
}

impl Opener {
    pub(crate) fn new(instance: Arc<Instance>) -> Result<Pin<KBox<Self>>> {
        let opener = KBox::pin_init(
            try_pin_init!(Self { instance, account <- new_mutex!(None, "emuv_account") }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let mut account = opener.account.lock();
        let mut state = opener.instance.state.lock();
        if state.pages.is_none() {
            state.pages = Some(Pages::new()?);
        }
        *account =
            Some(Holding { account: state.ledger.open().map_err(|refusal| errno(&refusal))?, dmem: KVVec::new() });
        drop(state);
        drop(account);
        if ffi::debug_mode() {
            pr_info!("emuv{}: opened\n", opener.instance.config.instance_id);
        }
        Ok(opener)
    }

    /// Runs `f` on the books.
    fn with<T>(&self, f: impl FnOnce(&mut Ledger, &mut Account) -> T) -> Result<T> {
        self.with_holding(|state, holding| f(&mut state.lock().ledger, &mut holding.account))
    }

    fn with_holding<T>(&self, f: impl FnOnce(&Mutex<State>, &mut Holding) -> T) -> Result<T> {
        let mut holding = self.account.lock();
        let holding: &mut Option<Holding> = &mut holding;
        Ok(f(&self.instance.state, holding.as_mut().ok_or(ENODEV)?))
    }

    /// Takes `amount` and says what is left, in either case.
    pub(crate) fn charge(&self, amount: Amount) -> Result<(Result, Amount)> {
        self.with_holding(|state, holding| {
            let (held, left) = (holding.account.held(), state.lock().ledger.left());
            // The cgroup first: what it refuses never shows in the books. Not asked for what the books refuse.
            if let Some(after) = held.checked_add(amount).filter(|_| amount.fits(left)) {
                if let Err(error) = holding.settle(after, &self.instance.dmem) {
                    return (Err(error), left);
                }
            }
            let mut state = state.lock();
            let charged = state.ledger.charge(&mut holding.account, amount).map_err(|refusal| errno(&refusal));
            let left = state.ledger.left();
            drop(state);
            if charged.is_err() {
                let _ = holding.settle(held, &self.instance.dmem);
            }
            (charged, left)
        })
    }

    /// Gives `amount` back and says what is left.
    pub(crate) fn release(&self, amount: Amount) -> Result<(Result, Amount)> {
        let (released, left) = self.with_holding(|state, holding| {
            let released = state.lock().ledger.release(&mut holding.account, amount).map_err(|refusal| errno(&refusal));
            let _ = holding.settle(holding.account.held(), &self.instance.dmem);
            (released, state.lock().ledger.left())
        })?;
        if released.is_ok() {
            self.instance.changed.notify_all();
        }
        Ok((released, left))
    }

    /// All figures; the limits have been seen then.
    pub(crate) fn query(&self) -> Result<abi::Query> {
        let config = &self.instance.config;
        self.with(|ledger, account| {
            let limits = ledger.see_limits(account);
            let (used, peak, own) = (ledger.used(), ledger.peak(), account.held());
            abi::Query {
                version: abi::VERSION,
                flags: 0,
                instance_id: config.instance_id,
                holders: ledger.holders(),
                vram_limit_bytes: limits.vram_bytes,
                ram_limit_bytes: limits.ram_bytes,
                vram_used_bytes: used.vram_bytes,
                ram_used_bytes: used.ram_bytes,
                vram_peak_bytes: peak.vram_bytes,
                ram_peak_bytes: peak.ram_bytes,
                resident_bytes: ledger.resident_bytes(),
                own_vram_bytes: own.vram_bytes,
                own_ram_bytes: own.ram_bytes,
                generation: ledger.generation(),
                gpu: name(config.gpu.name),
                label: self.instance.label,
            }
        })
    }

    pub(crate) fn news(&self) -> Result<News> {
        self.with(|ledger, account| ledger.news(account))
    }
}

#[pinned_drop]
#[allow(unsafe_code)] // the macro's
impl PinnedDrop for Opener {
    fn drop(self: Pin<&mut Self>) {
        let instance = &self.instance;
        let mut account = self.account.lock().take().map(|holding| holding.account);
        let mut state = instance.state.lock();
        state.ledger.close(&mut account);
        let mut left_behind = None;
        if state.ledger.holders() == 0 {
            let State { ledger, pages } = &mut *state;
            if instance.config.lazy_allocation {
                left_behind = pages.take();
            } else if let Some(pages) = pages {
                ledger.release_resident(pages.wipe() * PAGE_SIZE as u64);
            }
        }
        drop(state);
        if let Some(pages) = left_behind {
            let bytes = pages.bytes();
            drop(pages);
            instance.state.lock().ledger.release_resident(bytes);
        }
        instance.changed.notify_all();
        if ffi::debug_mode() {
            pr_info!("emuv{}: closed\n", instance.config.instance_id);
        }
    }
}

fn errno(refusal: &Refusal) -> Error {
    match refusal {
        Refusal::NoRoom(_) => EDQUOT,
        Refusal::Overflow => EOVERFLOW,
        Refusal::NotHeld => EINVAL,
        Refusal::Removed => ENODEV,
    }
}

/// Says `mistake` in the log and gives its error number.
pub(crate) fn complain(mistake: &Mistake<'_>) -> Error {
    let mut buffer = [0; 160];
    let mut message = Text::new(&mut buffer);
    // What does not fit is left out.
    let _ = write!(message, "{mistake}");
    pr_err!("{}\n", message.as_str());
    Error::from_errno(-mistake.errno())
}

/// A zero-terminated name.
pub(crate) fn as_text(name: &Name) -> &str {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    core::str::from_utf8(&name[..end]).unwrap_or("")
}

/// A number as people write it to a file.
pub(crate) fn number(text: &[u8]) -> Result<u64> {
    word(text)?.parse().map_err(|_| EINVAL)
}

/// Text as people write it to a file: without the end of its line.
pub(crate) fn word(text: &[u8]) -> Result<&str> {
    core::str::from_utf8(text).map(str::trim).map_err(|_| EINVAL)
}
