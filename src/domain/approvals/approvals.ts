import { actsAsAgent, opened, seesEverything, taskClosed, taskNotFound } from '../access.ts';
import type { Caller } from '../caller.ts';
import type { BoundedDecision } from '../decision.ts';
import { BrokerError, fieldInvalid } from '../errors.ts';
import { tasksAbove } from '../delegation/chain.ts';
import type { DecisionFacts } from '../facts.ts';
import type { NewId } from '../ids.ts';
import { lockedError, type LockGuard } from '../locks/guard.ts';
import type { ToolAccess } from '../model.ts';
import type { PolicySource } from '../policy.ts';
import type { Page, TaskStore, Wake } from '../store.ts';
import type { Emit } from '../telemetry.ts';
import type { Clock, Millis } from '../time.ts';
import { actorOf, checkAction, decideAction, type Action } from './actions.ts';
import { approvalEvent, newBreakGlass, newRequest, notice } from './build.ts';
import { limitsAt, requestedEvent, ungrouped, type FatigueLimits } from './gate.ts';
import { lineageOf } from './lineage.ts';
import { given, quorate, type Approval, type ApprovalState, type Verdict } from './model.ts';
import { approvalNotFound, isRequester, maySee, namesOf, quorumsOf, type GroupsOf } from './people.ts';
import type { ApprovalChange, ApprovalStore, NewApproval } from './store.ts';

export interface ApprovalsOptions {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  store: ApprovalStore;
  tasks: TaskStore;
  facts: DecisionFacts;
  groupsOf: GroupsOf;
  limits: FatigueLimits;
  locks: LockGuard;
  wake: Wake;
  sleep: (ms: Millis, signal: AbortSignal) => Promise<void>;
  /** Throws when this replica must not decide (its clock is off). */
  admit: () => void;
  /** Wakes this replica's messenger. */
  kickMessenger: () => void;
  emit: Emit;
}

export type Approvals = ReturnType<typeof createApprovals>;

const watchPoll: Millis = 1_000;
/** Members of one group that are decided with one word. */
const mostInGroup = 256;

/** What people and requesters do with approvals. Using one is `gate.ts` and the lease writer. */
export function createApprovals(options: ApprovalsOptions) {
  const { clock, policy, store, tasks, emit } = options;

  return {
    get: visible,

    list: async (
      caller: Caller,
      filter: {
        states: readonly ApprovalState[];
        taskId: string | undefined;
        groupId: string | undefined;
        pageSize: number;
        after: string | undefined;
      },
    ): Promise<Page<Approval>> =>
      await store.list({
        ...filter,
        tenant: caller.tenant,
        visibleTo: seesEverything(caller)
          ? undefined
          : {
              names: namesOf(caller, options.groupsOf),
              workload: caller.workload,
              agents: [...caller.agents],
              decides: caller.roles.has('approver'),
            },
      }),

    decide: async (
      caller: Caller,
      approvalId: string,
      verdict: Verdict,
      comment: string,
      wholeGroup: boolean,
    ): Promise<{ approval: Approval; others: Approval[] }> => {
      options.admit();
      const approval = await vote(caller, approvalId, verdict, comment);
      const others: Approval[] = [];
      if (wholeGroup) {
        const group = await store.list({
          tenant: caller.tenant,
          states: ['pending'],
          taskId: undefined,
          groupId: approval.groupId,
          visibleTo: undefined,
          pageSize: mostInGroup,
          after: undefined,
        });
        for (const member of group.items) {
          if (member.approvalId === approvalId || ineligible(caller, member) !== undefined) continue;
          try {
            others.push(await vote(caller, member.approvalId, verdict, comment));
          } catch (error) {
            // Decided by somebody else, or ended, since it was listed.
            if (!(error instanceof BrokerError) || error.reason !== 'APPROVAL_SETTLED') throw error;
          }
        }
      }
      options.kickMessenger();
      return { approval, others };
    },

    watch: async function* (caller: Caller, approvalId: string, signal: AbortSignal): AsyncIterable<Approval> {
      let last = '';
      for (;;) {
        const approval = await visible(caller, approvalId);
        const shape = JSON.stringify([approval.state, approval.usesLeft, approval.votes.length]);
        if (shape !== last) yield approval;
        last = shape;
        if (approval.state !== 'pending' || signal.aborted) return;
        await changed(approval, Math.min(watchPoll, Math.max(50, approval.decideBy - clock.now())), signal);
        if (signal.aborted) return;
      }
    },

    /** Everything that a task will need, asked at once: one group, one message to people. */
    request: async (
      caller: Caller,
      taskId: string,
      actions: readonly Action[],
      justification: string,
    ): Promise<{ decision: BoundedDecision; approval: Approval | undefined }[]> => {
      options.admit();
      const task = await tasks.get(caller.tenant, taskId);
      if (task === undefined || !(opened(caller, task) || actsAsAgent(caller, task))) throw taskNotFound(taskId);
      const now = clock.now();
      if (task.state !== 'open' || task.deadline <= now) throw taskClosed(task);
      const revision = policy.current(task.tenant);
      const above = task.parentTaskId === undefined ? undefined : await tasksAbove(tasks.get, task);
      const asking = {
        newId: options.newId,
        task,
        lineage: await lineageOf(tasks, task),
        revision,
        by: caller.workload,
        now,
      };
      const results: { decision: BoundedDecision; request: NewApproval | undefined }[] = [];
      for (const [index, action] of actions.entries()) {
        const { access, child } = action;
        checkAction(index, action, revision);
        const actor = actorOf(action, task, above, options.facts, caller.workload, now);
        // Nobody is asked about what would be refused all the same.
        const { lock } = await options.locks.standing(actor.task, actor.task.agentWorkload, access);
        if (lock !== undefined) throw lockedError(lock, { tool: access.tool, tier: access.tier });
        const decision = await decideAction(revision, action, actor, now);
        let request: NewApproval | undefined;
        if (decision.effect === 'needs_approval') {
          const { rule, reason } = decision;
          request = newRequest(
            asking,
            { ...action, rule, reason, justification },
            decision.approval,
            decision.granted.tool,
            child?.agent,
          );
        }
        results.push({ decision, request });
      }
      const requests = results.flatMap(({ request }) => (request === undefined ? [] : [request]));
      const limits = { ...limitsAt(options.limits, now), epoch: task.epoch };
      const answers = await store.request(requests, limits, (made) => ({
        events: made.map((approval) => requestedEvent(approval, caller.workload, now)),
        notices: notice('approval.requested', ungrouped(made), now),
      }));
      for (const { approval, asked: isNew } of answers) {
        if (!isNew) continue;
        const { tenant, approvalId, agent, tool, tier } = approval;
        emit('approval.requested', { tenant, taskId, approvalId, agent, tool, tier });
      }
      options.kickMessenger();
      let next = 0;
      return results.map(({ decision, request }) => ({
        decision,
        approval: request === undefined ? undefined : answers[next++]!.approval,
      }));
    },

    breakGlass: async (caller: Caller, taskId: string, access: ToolAccess, reason: string): Promise<Approval> => {
      options.admit();
      const task = await tasks.get(caller.tenant, taskId);
      if (task === undefined) throw taskNotFound(taskId);
      const now = clock.now();
      if (task.state !== 'open' || task.deadline <= now) throw taskClosed(task);
      const lineage = await lineageOf(tasks, task);
      if (lineage.includes(caller.workload) || caller.agents.has(task.agent)) throw notThemselves();
      if (!task.tools.some(({ tool, tier }) => tool === access.tool && tier === access.tier)) {
        throw fieldInvalid(
          'tool',
          `the task did not ask for ${access.tool}:${access.tier}: an emergency widens nothing`,
        );
      }
      const revision = policy.current(task.tenant);
      const asking = { newId: options.newId, task, lineage, revision, by: caller.workload, now };
      const [result] = await store.request(
        [newBreakGlass(asking, access, reason)],
        { ...limitsAt(options.limits, now), epoch: task.epoch },
        (made) => ({
          events: made.map((one) =>
            approvalEvent(one, 'approval.break_glass_requested', caller.workload, now, { reason }),
          ),
          notices: notice('approval.break_glass_requested', made, now),
        }),
      );
      const { approval, asked: isNew } = result!;
      if (isNew) emit('approval.break_glass_requested', loud(approval, caller.workload));
      options.kickMessenger();
      return approval;
    },

    /** Ends what nobody decided or used in time, and what its task does not need any more. */
    settleDue: async (limit: number): Promise<number> => {
      const now = clock.now();
      const settled = await store.settleDue(now, limit, (approval, taskOpen) => {
        const state: ApprovalState = !taskOpen ? 'cancelled' : approval.state === 'approved' ? 'expired' : 'timed_out';
        return {
          set: {
            state,
            ...(approval.decidedAt === undefined ? { decidedAt: now } : {}),
            // From its end, and not from whenever a worker comes to it.
            ...(state === 'timed_out' ? { coolDownUntil: approval.decideBy + approval.coolDown } : {}),
          },
          events: [approvalEvent(approval, `approval.${state}` as const, 'broker', now)],
          notices: state === 'expired' ? [] : notice(`approval.${state}`, [{ ...approval, state }], now),
        };
      });
      for (const approval of settled) emit('approval.settled', settledFields(approval));
      if (settled.length > 0) options.kickMessenger();
      return settled.length;
    },
  };

  async function visible(caller: Caller, approvalId: string): Promise<Approval> {
    const approval = await store.get(caller.tenant, approvalId);
    if (approval === undefined) throw approvalNotFound(approvalId);
    if (maySee(caller, approval, namesOf(caller, options.groupsOf))) return approval;
    if (approval.kind === 'for_child' && (await store.isPartyTo(approval, caller.workload))) return approval;
    throw approvalNotFound(approvalId);
  }

  /** Why this caller may not decide; undefined when it may. To whoever may not even see it, it does not exist. */
  function ineligible(caller: Caller, approval: Approval): BrokerError | undefined {
    const names = namesOf(caller, options.groupsOf);
    const requester = isRequester(caller, approval);
    if (!requester && quorumsOf(approval, names).length > 0) return undefined;
    if (!maySee(caller, approval, names) && !approval.excluded.includes(caller.workload)) {
      return approvalNotFound(approval.approvalId);
    }
    return requester ? notThemselves() : notAnApprover(approval);
  }

  async function vote(caller: Caller, approvalId: string, verdict: Verdict, comment: string): Promise<Approval> {
    const now = clock.now();
    let done = false;
    const changed = await store.change(caller.tenant, approvalId, (current) => {
      done = false;
      const refused = ineligible(caller, current);
      if (refused !== undefined) throw refused;
      const earlier = current.votes.find(({ approver }) => approver === caller.workload);
      if (earlier?.verdict === verdict) return undefined;
      if (current.state !== 'pending' || now >= current.decideBy) throw notPending(current);
      if (earlier !== undefined && verdict === 'approve') throw notPending(current);
      const quorums = quorumsOf(current, namesOf(caller, options.groupsOf));
      const change = { approver: caller.workload, verdict, comment, at: now, quorums };
      done = true;
      return outcome(current, change, now);
    });
    if (changed === undefined) throw approvalNotFound(approvalId);
    if (done) {
      if (changed.state === 'approved' && changed.kind === 'break_glass') {
        emit('approval.break_glass', loud(changed, caller.workload));
      }
      if (changed.state !== 'pending') emit('approval.settled', settledFields(changed));
    }
    return changed;
  }

  async function changed(approval: Approval, atMost: Millis, signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    const off = options.wake.onTask((tenant, taskId) => {
      if (tenant === approval.tenant && taskId === approval.taskId) stop.abort();
    });
    try {
      await options.sleep(atMost, AbortSignal.any([signal, stop.signal]));
    } finally {
      off();
    }
  }
}

/** One deny settles it; approved is what all its quorums agree to. */
function outcome(current: Approval, vote: Approval['votes'][number], now: number): ApprovalChange {
  const votes = [...current.votes.filter(({ approver }) => approver !== vote.approver), vote];
  const comment = vote.comment === '' ? {} : { comment: vote.comment };
  const emergency = current.kind === 'break_glass';
  if (vote.verdict === 'deny') {
    const coolDownUntil = now + current.coolDown;
    return {
      vote,
      set: { state: 'denied', decidedAt: now, coolDownUntil },
      events: [approvalEvent(current, 'approval.denied', vote.approver, now, comment)],
      notices: notice('approval.denied', [{ ...current, state: 'denied' }], now),
    };
  }
  if (!quorate({ ...current, votes })) {
    const counts = { given: given({ ...current, votes }), wanted: current.quorums.map(({ count }) => count) };
    return {
      vote,
      events: [approvalEvent(current, 'approval.voted', vote.approver, now, { ...comment, ...counts })],
      notices: [],
    };
  }
  const expiresAt = now + current.validFor;
  const people = votes.filter(({ verdict }) => verdict === 'approve').map(({ approver }) => approver);
  const kind = emergency ? 'approval.break_glass' : 'approval.approved';
  const detail = { ...comment, approvers: people, expires_at: new Date(expiresAt).toISOString() };
  return {
    vote,
    set: { state: 'approved', decidedAt: now, expiresAt },
    events: [
      approvalEvent(current, kind, vote.approver, now, emergency ? { ...detail, reason: current.reason } : detail),
    ],
    notices: notice(kind, [{ ...current, state: 'approved', expiresAt }], now),
  };
}

function notPending({ approvalId, state }: Approval): BrokerError {
  const what = state === 'pending' ? 'was not decided in time' : `is ${state.replace('_', ' ')}`;
  return new BrokerError('APPROVAL_SETTLED', `approval ${approvalId} ${what}: there is nothing left to decide`, {
    metadata: { approval: approvalId, state },
  });
}

function notThemselves(): BrokerError {
  return new BrokerError(
    'APPROVER_INELIGIBLE',
    'whoever asks never approves: not the agent, not the one who opened the task or one above it; somebody else has to decide',
  );
}

function notAnApprover({ approvalId, quorums }: Approval): BrokerError {
  const people = [...new Set(quorums.flatMap(({ approvers }) => approvers))].join(', ');
  return new BrokerError(
    'APPROVER_INELIGIBLE',
    `approval ${approvalId} is for ${people} to decide, not for this caller`,
  );
}

function loud(approval: Approval, by: string) {
  const { tenant, taskId, approvalId, agent, tool, tier } = approval;
  return { tenant, taskId, approvalId, agent, tool, tier, by };
}

function settledFields(approval: Approval) {
  const { tenant, taskId, approvalId, state, requestedAt, decidedAt } = approval;
  return { tenant, taskId, approvalId, state, waitedMs: (decidedAt ?? requestedAt) - requestedAt };
}
