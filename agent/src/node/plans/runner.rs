//! Does plans, one at a time, and looks at what their probes ask for.

use super::{
    Plans, now,
    steps::{Failure, Unlike},
    tail,
};
use crate::limits;
use moorline_authz::plan::{Phase, Plan, ProbeResult, Progress, Step, StepResult};
use rand::Rng;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

impl Plans {
    /// Does what is there and what comes. Never ends.
    ///
    /// # Cancel safety
    /// Dropping the future kills what runs; the step is done again by the next agent.
    pub async fn run(&self) {
        tokio::join!(self.work(), self.look());
    }

    async fn work(&self) {
        // Plans that were taken away, whose nodes are still closed for them: until when that is tried.
        let mut owed: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            self.reopen(&mut owed).await;
            let Some((uid, plan, progress, stop)) = self.next() else {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = sleep(limits::PLAN_REOPEN_PAUSE), if !owed.is_empty() => {}
                }
                continue;
            };
            tracing::info!(plan = plan.name, step = progress.steps.len(), "a plan begins, or goes on");
            match stop.run_until_cancelled(self.carry_out(&uid, &plan, progress)).await {
                Some(progress) => {
                    tracing::info!(plan = plan.name, phase = ?progress.phase, message = progress.message, "a plan is over");
                    self.note(&uid, &progress);
                }
                None => {
                    tracing::info!(plan = plan.name, "a plan was taken away");
                    if 0 < plan.drain_seconds {
                        owed.insert(plan.name, Instant::now() + limits::PLAN_REOPEN);
                    }
                }
            }
        }
    }

    /// Takes the node back into use, as far as it is closed for one of these plans. Between plans alone: one that empties the
    /// node is not undone.
    async fn reopen(&self, owed: &mut BTreeMap<String, Instant>) {
        for (plan, until) in std::mem::take(owed) {
            match self.uncordon(Some(&plan)).await {
                Ok(()) => tracing::info!(plan, "the node is as it was before"),
                Err(why) if Instant::now() < until => {
                    tracing::warn!(plan, why, "the node was not taken back into use; it is tried again");
                    owed.insert(plan, until);
                }
                Err(why) => tracing::error!(plan, why, "the node stays closed"),
            }
        }
    }

    async fn carry_out(&self, uid: &str, plan: &Plan, mut progress: Progress) -> Progress {
        progress.phase = Phase::Running;
        if progress.began == 0 {
            progress.began = now();
        }
        let over = |mut progress: Progress, phase, message: String| {
            (progress.phase, progress.message, progress.ended) = (phase, message, now());
            progress.needs = Vec::new();
            progress
        };
        self.note(uid, &progress);
        if 0 < plan.drain_seconds && progress.steps.is_empty() {
            progress.message = "emptying the node of its pods".to_owned();
            self.note(uid, &progress);
            let patience = Duration::from_secs(plan.drain_seconds.into());
            if let Err(why) = self.drain(&plan.name, patience).await {
                return over(progress, Phase::Failed, format!("the node was not emptied: {why}"));
            }
        }
        for (n, step) in plan.steps.iter().enumerate() {
            let done = progress.steps.get(n).is_some_and(|result| result.phase == Phase::Succeeded);
            if done {
                continue;
            }
            progress.steps.truncate(n);
            progress.steps.push(StepResult { name: step.name.clone(), phase: Phase::Running, ..StepResult::default() });
            progress.message = format!("step {} of {}: {}", n + 1, plan.steps.len(), step.name);
            if let Err((phase, why)) = self.step(uid, plan, step, &mut progress).await {
                return over(progress, phase, format!("step {}: {why}", step.name));
            }
        }
        if 0 < plan.drain_seconds
            && let Err(why) = self.uncordon(None).await
        {
            return over(progress, Phase::Failed, format!("the node was not taken back into use: {why}"));
        }
        over(progress, Phase::Succeeded, String::new())
    }

    /// One step, as often as it may be tried.
    async fn step(&self, uid: &str, plan: &Plan, step: &Step, progress: &mut Progress) -> Result<(), (Phase, String)> {
        let mut pause = limits::PLAN_PAUSE;
        loop {
            let tries = match progress.steps.last_mut() {
                Some(result) => {
                    result.tries += 1;
                    result.tries
                }
                None => return Err((Phase::Failed, "there is no such step".to_owned())),
            };
            progress.needs = step.fetch.iter().map(|fetch| fetch.sha256.clone()).collect();
            self.note(uid, progress);
            // The owner may have thought better of it since the plan was taken.
            if let Err(denial) = self.policy.current().plan(plan) {
                return Err((Phase::Refused, denial.to_string()));
            }
            let outcome = self.perform(uid, step).await;
            progress.needs = Vec::new();
            let Some(result) = progress.steps.last_mut() else { continue };
            let why = match outcome {
                Ok(done) => {
                    result.phase = Phase::Succeeded;
                    result.output = tail(&done.output, limits::PLAN_OUTPUT);
                    (result.file, result.message) = (done.file, String::new());
                    self.note(uid, progress);
                    return Ok(());
                }
                Err(Failure { why, output }) => {
                    result.output = tail(&output, limits::PLAN_OUTPUT);
                    result.message = tail(why.as_bytes(), limits::PLAN_CAUSE);
                    result.message.clone()
                }
            };
            tracing::warn!(plan = plan.name, step = step.name, tries, why, "a step has failed");
            if step.tries.max(1) <= tries {
                result.phase = Phase::Failed;
                return Err((Phase::Failed, why));
            }
            self.note(uid, progress);
            let rest = pause + pause.mul_f64(rand::rng().random());
            sleep(rest).await;
            pause = (pause * 2).min(limits::PLAN_PAUSE_MAX);
        }
    }

    /// Looks at the probes of plans that are done.
    async fn look(&self) {
        let mut due: BTreeMap<(String, String), Instant> = BTreeMap::new();
        loop {
            sleep_until(Instant::now() + limits::PLAN_LOOK).await;
            let done: Vec<(String, Plan, Progress)> = {
                let all = self.lock();
                let done = all.iter().filter(|(_, known)| known.progress.phase == Phase::Succeeded);
                done.map(|(uid, known)| (uid.clone(), known.plan.clone(), known.progress.clone())).collect()
            };
            due.retain(|(uid, _), _| done.iter().any(|(known, ..)| known == uid));
            for (uid, plan, mut progress) in done {
                let mut changed = false;
                for watch in &plan.probes {
                    let key = (uid.clone(), watch.name.clone());
                    if due.get(&key).is_some_and(|at| Instant::now() < *at) {
                        continue;
                    }
                    due.insert(key, Instant::now() + Duration::from_secs(watch.every_seconds.max(5).into()));
                    // The owner may have thought better of it since the plan was done: then nothing is known of it.
                    let said = self.probe(&watch.probe).await;
                    let why = said.as_ref().err().map(ToString::to_string).unwrap_or_default();
                    let result = ProbeResult {
                        name: watch.name.clone(),
                        ok: said.is_ok(),
                        refused: matches!(said, Err(Unlike::Refused(_))),
                        message: tail(why.as_bytes(), limits::PLAN_CAUSE),
                    };
                    match progress.probes.iter_mut().find(|old| old.name == watch.name) {
                        Some(old) if *old == result => {}
                        Some(old) => (*old, changed) = (result, true),
                        None => {
                            progress.probes.push(result);
                            changed = true;
                        }
                    }
                }
                if changed {
                    self.note(&uid, &progress);
                }
            }
        }
    }
}
