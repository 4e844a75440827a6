import { checkArguments, type Arguments } from './arguments.ts';
import { canSee, seesEverything } from './access.ts';
import type { Caller } from './caller.ts';
import type { BoundedDecision } from './decision.ts';
import {
  asked,
  canBeAskedAgain,
  decideAgain,
  policyEffect,
  taskFacts,
  type RecordedDecision,
  type TaskFacts,
} from './decision-record.ts';
import { BrokerError, fieldInvalid } from './errors.ts';
import { loadFacts, needsOf, tasksAbove } from './delegation/chain.ts';
import type { DecisionFacts } from './facts.ts';
import { isId } from './ids.ts';
import { lockedReason, type LockGuard } from './locks/guard.ts';
import type { Task, ToolAccess } from './model.ts';
import type { ConsideredRule, PolicyRevision, PolicySource, SenderConstraint } from './policy.ts';
import type { Revisions } from './revisions.ts';
import type { Clock, Instant, Millis } from './time.ts';

export interface DecisionBounds {
  tenant: string;
  since: Instant;
  until: Instant;
  tool: string | undefined;
}

/** A recorded decision whose detail has not been read: those who only pass it on need not. */
export interface RawDecision {
  decisionId: string;
  at: Instant;
  workload: string;
  taskId: string;
  leaseId: string | undefined;
  /** JSON. */
  detail: string;
}

export interface DecisionStore {
  byId(tenant: string, decisionId: string): Promise<RawDecision | undefined>;
  /** The decision that issued a lease. */
  ofLease(tenant: string, leaseId: string): Promise<RawDecision | undefined>;
  /** In order, after `after`. */
  page(bounds: DecisionBounds, after: string | undefined, limit: number): Promise<RawDecision[]>;
  count(bounds: DecisionBounds): Promise<number>;
  tasks(tenant: string, taskIds: readonly string[]): Promise<Task[]>;
}

export interface Hypothetical {
  taskId: string;
  agent: string;
  context: Readonly<Record<string, string>>;
  labels: Readonly<Record<string, string>>;
  workload: string;
  access: ToolAccess;
  at: Instant | undefined;
  renewals: number | undefined;
  arguments: Arguments;
  boundTo: SenderConstraint | undefined;
  revision: string;
}

export interface ExplainedRule extends ConsideredRule {
  decided: boolean;
}

export interface Explanation {
  decisionId: string;
  at: Instant;
  revision: string;
  effect: BoundedDecision['effect'];
  rule: string;
  reason: string;
  ttl: Millis | undefined;
  /** Only for those who see everything. */
  full: { rules: ExplainedRule[]; input: object; obligations: object } | undefined;
  reproduced: boolean | undefined;
}

export interface ExplanationsOptions {
  clock: Clock;
  policy: PolicySource;
  revisions: Pick<Revisions, 'named'>;
  decisions: DecisionStore;
  /** What storage knows of a task that exists. */
  facts: DecisionFacts;
  locks: LockGuard;
  /** A revision that may not be running. */
  compiled: (digest: string) => Promise<PolicyRevision>;
}

export type Explanations = ReturnType<typeof createExplanations>;

const pageSize = 1_000;
/** Tasks that a reader of the stream is taken to remember. */
const remembered = 20_000;

export function createExplanations(options: ExplanationsOptions) {
  const { decisions, policy, clock } = options;

  return {
    /** Why a recorded decision came out as it did. */
    recorded: async (caller: Caller, id: string): Promise<Explanation> => {
      const raw = isId('lse', id)
        ? await decisions.ofLease(caller.tenant, id)
        : isId('dec', id)
          ? await decisions.byId(caller.tenant, id)
          : undefined;
      if (raw === undefined && !isId('lse', id) && !isId('dec', id)) {
        throw fieldInvalid('decision_id', 'must be a decision id dec_… or a lease id lse_…');
      }
      const [task] = raw === undefined ? [] : await decisions.tasks(caller.tenant, [raw.taskId]);
      if (raw === undefined || task === undefined || !canSee(caller, task)) throw decisionNotFound(id);
      const record = recordOf(raw, task, await above(task));
      const { detail } = record;
      const explanation: Explanation = {
        decisionId: raw.decisionId,
        at: raw.at,
        revision: detail.policy_revision,
        effect: detail.effect,
        rule: detail.rule,
        reason: seesEverything(caller) ? withLock(detail.reason, detail.lock) : detail.reason,
        ttl: detail.ttl_ms,
        full: undefined,
        reproduced: undefined,
      };
      if (!seesEverything(caller) || !canBeAskedAgain(record)) return explanation;
      const revision = await options.compiled(detail.policy_revision);
      const again = explain(revision, record);
      return { ...explanation, full: again.full, reproduced: agrees(record, again.decision) };
    },

    /** How a request that nobody made would be decided. */
    hypothetical: async (caller: Caller, request: Hypothetical): Promise<Explanation> => {
      if (!seesEverything(caller)) {
        throw new BrokerError(
          'ROLE_REQUIRED',
          'requests that were not made are explained to operators and auditors; an agent names a decision of its own',
        );
      }
      const at = request.at ?? clock.now();
      const revision =
        request.revision === ''
          ? policy.current(caller.tenant)
          : await options.compiled((await options.revisions.named(caller, request.revision)).digest);
      const [task] = request.taskId === '' ? [] : await decisions.tasks(caller.tenant, [request.taskId]);
      if (request.taskId !== '' && task === undefined) {
        throw new BrokerError('TASK_NOT_FOUND', `no task ${request.taskId}: check the id`);
      }
      const facts: TaskFacts = task === undefined ? imagined(request, at) : taskFacts(task);
      const { tool, tier } = request.access;
      checkArguments(`${tool}:${tier}`, revision.tools.get(tool)?.tiers[tier]?.arguments ?? {}, request.arguments);
      const over = task === undefined || task.parentTaskId === undefined ? undefined : await above(task);
      const needs = needsOf(revision, facts, over, request.access, request.renewals !== undefined, at);
      // A task that is only imagined holds nothing; what others hold is counted, and what is said of them is known.
      const agentWorkload = task?.agentWorkload ?? (request.workload === '' ? undefined : request.workload);
      const asking = { ...facts, tenant: caller.tenant, agentWorkload };
      const record: RecordedDecision = {
        at,
        workload: request.workload === '' ? (task?.agentWorkload ?? '') : request.workload,
        task: facts,
        above: over ?? [],
        leaseId: undefined,
        detail: {
          decision_id: '',
          ...request.access,
          arguments: request.arguments,
          effect: 'deny',
          rule: '',
          reason: '',
          policy_revision: revision.digest,
          asked: asked(
            { deadline: task?.deadline ?? at + 3_600_000, agent: facts.agent },
            {
              ...(await loadFacts(options.facts, asking, over, request.access, needs, at)),
              boundTo: request.boundTo,
              renewal:
                request.renewals === undefined
                  ? undefined
                  : { count: request.renewals, age: 0, sinceIssue: Number.MAX_SAFE_INTEGER, heartbeat: true },
            },
          ),
        },
      };
      const { decision, full } = explain(revision, record);
      const place = { ...facts, tenant: caller.tenant, agentWorkload: task?.agentWorkload };
      const { lock } = await options.locks.standing(place, record.workload, request.access);
      // Locks are about now: at another time there may be others.
      if (lock !== undefined && request.at === undefined) {
        const reason = withLock(`LOCKED: ${lockedReason(lock)}`, lock.lockId);
        return {
          decisionId: '',
          at,
          revision: revision.digest,
          effect: 'deny',
          rule: '',
          reason: `${reason}; policy by itself: ${decision.effect}, ${decision.reason}`,
          ttl: undefined,
          full: { ...full, rules: full.rules.map((rule) => ({ ...rule, decided: false })) },
          reproduced: undefined,
        };
      }
      return {
        decisionId: '',
        at,
        revision: revision.digest,
        effect: decision.effect,
        rule: decision.rule,
        reason: decision.reason,
        ttl: decision.effect === 'allow' ? decision.life : undefined,
        full,
        reproduced: undefined,
      };
    },

    /** Recorded decisions in pages, with each task once. */
    stream: async function* (
      caller: Caller,
      bounds: Omit<DecisionBounds, 'tenant'> & { agent: string | undefined },
      signal: AbortSignal,
    ): AsyncIterable<{ tasks: Task[]; decisions: RawDecision[]; total: number }> {
      const within: DecisionBounds = { ...bounds, tenant: caller.tenant };
      const sent = new Map<string, boolean>();
      const upSent = new Set<string>();
      // The next page is read while this one is sent and decided: the three take about the same time.
      const read = (after: string | undefined) => {
        const page = decisions.page(within, after, pageSize);
        page.catch(() => undefined);
        return page;
      };
      let next = read(undefined);
      let total = await decisions.count(within);
      for (let first = true; !signal.aborted; first = false) {
        const page = await next;
        if (page.length === 0 && !first) return;
        const more = page.length === pageSize;
        if (more) next = read(page.at(-1)!.decisionId);
        if (sent.size + upSent.size > remembered) {
          sent.clear();
          upSent.clear();
        }
        const missing = [...new Set(page.map(({ taskId }) => taskId))].filter((id) => !sent.has(id));
        const tasks = await decisions.tasks(caller.tenant, missing);
        for (const task of tasks) sent.set(task.taskId, bounds.agent === undefined || task.agent === bounds.agent);
        const wanted = tasks.filter(({ taskId }) => sent.get(taskId));
        yield {
          // Those above as well: whoever decides again needs them.
          tasks: [...(await unsentAbove(caller.tenant, wanted, sent, upSent)), ...wanted],
          decisions: page.filter(({ taskId }) => sent.get(taskId)),
          total,
        };
        total = 0;
        if (!more) return;
      }
    },
  };

  async function above(task: Task): Promise<Task[]> {
    return await tasksAbove(async (tenant, taskId) => (await decisions.tasks(tenant, [taskId]))[0], task);
  }

  /** Tasks above these that the reader has not been sent, level by level. */
  async function unsentAbove(
    tenant: string,
    tasks: readonly Task[],
    sent: ReadonlyMap<string, boolean>,
    upSent: Set<string>,
  ): Promise<Task[]> {
    const found: Task[] = [];
    const here = new Set(tasks.map(({ taskId }) => taskId));
    let level = tasks;
    while (level.length > 0) {
      const parents = [...new Set(level.flatMap(({ parentTaskId }) => parentTaskId ?? []))];
      const missing = parents.filter((id) => sent.get(id) !== true && !upSent.has(id) && !here.has(id));
      level = missing.length === 0 ? [] : await decisions.tasks(tenant, missing);
      for (const task of level) upSent.add(task.taskId);
      found.push(...level);
    }
    return found;
  }
}

export function recordOf(raw: RawDecision, task: TaskFacts, above: readonly TaskFacts[]): RecordedDecision {
  return {
    at: raw.at,
    workload: raw.workload,
    task,
    above,
    leaseId: raw.leaseId,
    detail: JSON.parse(raw.detail) as RecordedDecision['detail'],
  };
}

/** Which lock it was is for those who can look at it. */
function withLock(reason: string, lock: string | undefined): string {
  return lock === undefined ? reason : `${reason} (${lock})`;
}

function explain(revision: PolicyRevision, record: RecordedDecision) {
  const rules: ConsideredRule[] = [];
  const decision = decideAgain(revision, record, (rule) => rules.push(rule));
  const { asked: what, tool, tier, arguments: declared } = record.detail;
  const args = declared === undefined ? {} : { arguments: declared };
  const obligations = 'obligations' in decision ? decision.obligations : {};
  return {
    decision,
    full: {
      rules: rules.map((rule) => ({ ...rule, decided: rule.rule === decision.rule && rule.taskId === decision.hop })),
      input: {
        task: record.task,
        ...(record.above.length === 0 ? {} : { above: record.above }),
        workload: record.workload,
        access: { tool, tier },
        at: record.at,
        ...args,
        ...what,
      },
      obligations,
    },
  };
}

function agrees({ detail }: RecordedDecision, again: BoundedDecision): boolean {
  if (detail.approval !== undefined) return again.effect === policyEffect(detail);
  if (detail.effect !== again.effect || detail.rule !== again.rule) return false;
  return again.effect !== 'allow' || detail.ttl_ms === undefined || detail.ttl_ms === again.life;
}

function imagined(request: Hypothetical, at: Instant): TaskFacts {
  if (request.agent === '') throw fieldInvalid('hypothetical.agent', 'must name an agent when no task is named');
  return {
    taskId: '',
    rootTaskId: '',
    parentTaskId: undefined,
    agent: request.agent,
    opener: '',
    tools: [request.access],
    context: request.context,
    labels: request.labels,
    openedAt: at,
  };
}

function decisionNotFound(id: string): BrokerError {
  return new BrokerError('DECISION_NOT_FOUND', `no decision ${id} that this caller may see: check the id`);
}
