//! The decision about one framework and one agent: what it may be offered there, or why nothing.
//!
//! Invariant: it depends on nothing but what the tables say at this moment, and changes nothing, so that rounds
//! and explanations cannot differ.

use super::vector::{CPUS, MEM, Vector};
use super::{Allocator, Pieces, REGULAR, REVOCABLE, ROOT};
use crate::limits::{OFFER_MIN_CPUS_MILLI, OFFER_MIN_MEM_MIB};

/// On which grounds something is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To meet the guarantee of this role, or of one below.
    Guarantee(usize),
    /// To everybody, by shares.
    Fair,
    /// To be taken back at any time, of what guarantees keep.
    Revocable,
}

impl Stage {
    pub(super) const fn class(self) -> usize {
        match self {
            Self::Guarantee(_) | Self::Fair => REGULAR,
            Self::Revocable => REVOCABLE,
        }
    }
}

/// Why somebody is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pass {
    /// Nothing is free that is worth an offer.
    NothingFree,
    /// It is held for another one's request.
    Held,
    /// It refused that before.
    Refused,
    /// It does not fulfil the constraints of any request.
    Constraints,
    /// What is free is less than any request, or than the role's smallest offer.
    TooSmall,
    /// All pieces that it asked for are being offered.
    Enough,
    /// A role's quota limit leaves too little.
    Limit(usize),
    /// Guarantees of others need it.
    Headroom,
}

/// What may be offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) amounts: Vector,
    pub(super) pieces: Pieces,
}

/// What was found out on the way, whatever came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cuts {
    /// Only this request is asked about.
    pub(super) only: Option<usize>,
    /// A quota limit made it less.
    pub(super) limit: Option<usize>,
    /// Guarantees of others made it less.
    pub(super) headroom: bool,
}

/// Whether an amount is worth an offer.
pub(super) fn worth(amounts: &Vector) -> bool {
    amounts.get(CPUS) >= OFFER_MIN_CPUS_MILLI || amounts.get(MEM) >= OFFER_MIN_MEM_MIB
}

/// Whether so much of a kind is of any use: without CPU, or without memory, nothing runs.
pub(super) const fn leaves_some(kind: usize, most: i64) -> bool {
    match kind {
        CPUS => most >= OFFER_MIN_CPUS_MILLI,
        MEM => most >= OFFER_MIN_MEM_MIB,
        _ => true,
    }
}

/// What came of cutting amounts down.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    /// They are less.
    less: bool,
    /// There may be no CPU, or no memory: what is left of the other is of no use.
    nothing: bool,
}

impl Cut {
    fn cut(&mut self, amounts: &mut Vector, kind: usize, most: i64) {
        let most = most.max(0);
        if amounts.get(kind) > most {
            self.less = true;
            amounts.set(kind, most);
        }
        self.nothing |= !leaves_some(kind, most);
    }
}

impl Allocator {
    /// What a framework may be offered of an agent, and what made it less.
    pub(super) fn consider(
        &self,
        framework: usize,
        agent: usize,
        stage: Stage,
        cuts: &mut Cuts,
    ) -> Result<Part, Pass> {
        let (whose, place) = (&self.frameworks[framework], &self.agents[agent]);
        let role = &self.roles[whose.role].name;
        let free = self.kinds.open_to(&place.facts.free.clamped(), role);
        if !worth(&free) {
            return Err(Pass::NothingFree);
        }
        let class = stage.class();
        if class == REVOCABLE && place.cleared {
            return Err(Pass::Held);
        }
        if class == REGULAR && place.held.is_some_and(|(holder, _)| holder != framework) {
            return Err(Pass::Held);
        }
        let refused = self.refused(agent, framework);
        if refused.is_some_and(|refused| refused.contains(&free)) {
            return Err(Pass::Refused);
        }
        let mut amounts = free.clone();
        let (limit, by) = if class == REGULAR && self.any_limit {
            self.cut_to_limits(whose.role, &mut amounts)
        } else {
            Default::default()
        };
        let within = amounts.clone();
        let headroom = match stage {
            Stage::Guarantee(needy) => self.cut_to_guarantee(whose.role, needy, &mut amounts),
            Stage::Fair => self.cut_to_surplus(whose.role, &mut amounts),
            Stage::Revocable if place.held.is_some() => Cut::default(),
            Stage::Revocable => self.cut_to_kept(&mut amounts),
        };
        cuts.limit = by;
        cuts.headroom = headroom.less || headroom.nothing;
        if let Some(by) = by.filter(|_| limit.nothing) {
            return Err(Pass::Limit(by));
        }
        if headroom.nothing {
            return Err(Pass::Headroom);
        }
        let part = if whose.facts.wants.is_empty() {
            Part { amounts, pieces: Vec::new() }
        } else {
            let of = |amounts: &Vector| self.pieces(framework, agent, class, cuts.only, refused, amounts);
            of(&amounts).map_err(|pass| match pass {
                Pass::TooSmall if headroom.less && of(&within).is_ok() => Pass::Headroom,
                Pass::TooSmall if limit.less && of(&free).is_ok() => Pass::Limit(by.unwrap_or(ROOT)),
                pass => pass,
            })?
        };
        if !self.large_enough(whose.role, &part) {
            return Err(Pass::TooSmall);
        }
        if part.pieces.is_empty() && refused.is_some_and(|refused| refused.contains(&part.amounts)) {
            return Err(Pass::Refused);
        }
        Ok(part)
    }

    /// Leave no more than the quota limits of a role and all above it do; and the one that leaves too little, or the
    /// outermost that made it less.
    fn cut_to_limits(&self, role: usize, amounts: &mut Vector) -> (Cut, Option<usize>) {
        let mut all = Cut::default();
        let (mut by, mut none_by) = (None, None);
        for place in self.lineage(role) {
            let role = &self.roles[place];
            let mut cut = Cut::default();
            for (kind, limit) in &role.said.limit {
                cut.cut(amounts, *kind, limit - role.all[REGULAR].sum.get(*kind));
            }
            by = if cut.less { Some(place) } else { by };
            none_by = if cut.nothing { Some(place) } else { none_by };
            all.less |= cut.less;
            all.nothing |= cut.nothing;
        }
        (all, none_by.or(by))
    }

    /// Leave what guarantees of others need.
    fn cut_to_surplus(&self, role: usize, amounts: &mut Vector) -> Cut {
        self.cut_to_surplus_of(role, amounts, |_| true)
    }

    fn cut_to_surplus_of(&self, role: usize, amounts: &mut Vector, of: impl Fn(usize) -> bool) -> Cut {
        let mut cut = Cut::default();
        if !self.any_guarantee {
            return cut;
        }
        let others = self.others_need(role, ROOT);
        // What nobody has a guarantee of is anybody's. Not what nobody needs now: while a round meets guarantees, there must
        // not be more for others at its end than at its beginning.
        for kind in self.guaranteed.iter().copied().filter(|kind| of(*kind)) {
            cut.cut(amounts, kind, self.there.get(kind) - others.get(kind));
        }
        cut
    }

    /// No more than a role's guarantee lacks, without what those beside this framework need of it.
    fn cut_to_guarantee(&self, role: usize, needy: usize, amounts: &mut Vector) -> Cut {
        let beside = self.others_need(role, needy);
        let guarantee = &self.roles[needy].said.guarantee;
        let mut cut = self.cut_to_surplus_of(role, amounts, |kind| !guarantee.iter().any(|(of, _)| *of == kind));
        for (kind, _) in guarantee {
            cut.cut(amounts, *kind, self.roles[needy].lacks(*kind) - beside.get(*kind));
            // Memory here and CPU there would meet it in numbers only.
            cut.nothing |= !leaves_some(*kind, amounts.get(*kind));
        }
        cut
    }

    /// Whether an agent has some of everything without which a role's guarantee is not met.
    pub(super) fn could_meet(&self, needy: usize, free: &Vector) -> bool {
        self.roles[needy].said.guarantee.iter().all(|(kind, _)| leaves_some(*kind, free.get(*kind)))
    }

    /// No more than guarantees keep and is not in use like that already.
    fn cut_to_kept(&self, amounts: &mut Vector) -> Cut {
        let mut cut = Cut::default();
        let mut any = false;
        // Of what nobody has a guarantee of, any amount goes with what is kept.
        for kind in self.guaranteed.iter().copied() {
            cut.cut(amounts, kind, self.roles[ROOT].below.get(kind) - self.revocable.get(kind));
            any |= amounts.get(kind) > 0;
        }
        // Else nothing of it is kept.
        cut.nothing |= !any;
        cut
    }

    /// What guarantees need below `above` that are not of the line from there down to a role.
    pub(super) fn others_need(&self, role: usize, above: usize) -> Vector {
        let mut others = self.roles[role].below.clone();
        let mut place = role;
        while place != above && place != ROOT {
            let parent = self.roles[place].parent;
            others.add(&self.roles[parent].below);
            others.take(&self.roles[place].need);
            place = parent;
        }
        others
    }

    /// As much as the requests need together that fit there, in the order in which they were made.
    fn pieces(
        &self,
        framework: usize,
        agent: usize,
        class: usize,
        only: Option<usize>,
        refused: Option<&Vector>,
        amounts: &Vector,
    ) -> Result<Part, Pass> {
        let whose = &self.frameworks[framework];
        let (mut left, mut sum) = (amounts.clone(), Vector::default());
        let mut pieces = Vec::new();
        let mut pass = Pass::Constraints;
        let held = self.agents[agent].held.filter(|_| class == REGULAR);
        for (at, want) in whose.facts.wants.iter().enumerate() {
            // What is held for one request is not for another.
            let asked = only.is_none_or(|only| only == at);
            if !asked || want.revocable != (class == REVOCABLE) || held.is_some_and(|held| held != (framework, at)) {
                continue;
            }
            let fits = whose.fits.get(at).and_then(Option::as_ref);
            if fits.is_some_and(|fits| !fits.has(agent)) {
                continue;
            }
            let offered = whose.facts.offered.get(at).copied().unwrap_or(0);
            let missing = want.count.saturating_sub(offered);
            if missing == 0 {
                pass = pass.max_of(Pass::Enough);
                continue;
            }
            // What was declined there, with more or alone, is not offered there again for a while.
            if refused.is_some_and(|refused| refused.contains(&want.piece)) {
                pass = pass.max_of(Pass::Refused);
                continue;
            }
            let count = left.fits(&want.piece).min(i64::from(missing));
            if count <= 0 {
                pass = pass.max_of(Pass::TooSmall);
                continue;
            }
            let part = want.piece.times(count);
            left.take(&part);
            sum.add(&part);
            pieces.push((at, u32::try_from(count).unwrap_or(missing)));
        }
        if pieces.is_empty() { Err(pass) } else { Ok(Part { amounts: sum, pieces }) }
    }

    /// Whether it is no smaller than the smallest offer of the role, or of the nearest above that has one.
    fn large_enough(&self, role: usize, part: &Part) -> bool {
        let whole = worth(&part.amounts);
        if !self.any_least || !part.pieces.is_empty() {
            return whole;
        }
        let least = self.lineage(role).map(|place| &self.roles[place].said.min_offer).find(|least| !least.is_zero());
        whole && least.is_none_or(|least| part.amounts.contains(least))
    }
}

impl Pass {
    /// Of two reasons the one that says more.
    const fn max_of(self, other: Self) -> Self {
        match (self, other) {
            (Self::TooSmall, _) => Self::TooSmall,
            (Self::Refused, Self::Enough) => Self::Refused,
            (_, other) => other,
        }
    }
}
