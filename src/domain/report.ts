import { controls, type Control } from './frameworks.ts';
import { tiers, type RevocationKind, type Tier, type ToolAccess } from './model.ts';
import type { Agent, PolicyRevision, PolicySource } from './policy.ts';
import { reviewEnd } from './review.ts';
import type { Clock, Instant, Millis } from './time.ts';

export interface Use extends ToolAccess {
  agent: string;
  issued: number;
  renewed: number;
}

export interface Denial extends ToolAccess {
  agent: string;
  effect: string;
  rule: string;
  count: number;
}

export interface Counted {
  outcome: string;
  cause: string;
  count: number;
}

export interface ApprovalCount {
  outcome: string;
  count: number;
  medianLatency: Millis | undefined;
}

/** What storage counts. Each method reads the period only, by ids that begin with their time. */
export interface ReportStore {
  uses(tenant: string, since: Instant): Promise<Use[]>;
  tasksByAgent(tenant: string, since: Instant): Promise<ReadonlyMap<string, number>>;
  /** The most frequent first. */
  denials(tenant: string, since: Instant, limit: number): Promise<Denial[]>;
  approvals(tenant: string, since: Instant): Promise<ApprovalCount[]>;
  leaseOutcomes(tenant: string, since: Instant): Promise<Counted[]>;
  taskOutcomes(tenant: string, since: Instant): Promise<Counted[]>;
}

export interface ReportBounds {
  since: Instant;
  unusedFor: Millis;
  reviewAhead: Millis;
}

export type Review = 'none' | 'later' | 'due' | 'overdue';

export interface AgentEntry {
  agent: Agent;
  review: Review;
  tasks: number;
  issued: number;
  renewed: number;
  denied: number;
}

export interface ToolEntry extends ToolAccess {
  owner: string;
  revocation: RevocationKind;
  agents: number;
  issued: number;
}

export interface Grant extends ToolAccess {
  agent: string;
  rule: string;
}

export interface Report {
  since: Instant;
  until: Instant;
  revision: string;
  agents: AgentEntry[];
  tools: ToolEntry[];
  unusedGrants: Grant[];
  grants: number;
  unused: number;
  grantsIncomplete: boolean;
  denials: Denial[];
  approvals: ApprovalCount[];
  leaseOutcomes: Counted[];
  taskOutcomes: Counted[];
  controls: readonly Control[];
}

export interface ReporterOptions {
  clock: Clock;
  policy: PolicySource;
  store: ReportStore;
  /** Lets others have the processor between two pieces of work. */
  yieldNow: () => Promise<void>;
}

const maxEntries = 1_000;
const maxUnused = 500;
const maxDenials = 500;
/** Of agent, tool and tier: a large estate is told that it was not looked at to the end. */
const maxCombinations = 200_000;
const slice = 500;

/** The inventory of agents, tools and grants for those who answer for them. */
export function createReporter({ clock, policy, store, yieldNow }: ReporterOptions) {
  return async (tenant: string, bounds: ReportBounds): Promise<Report> => {
    const now = clock.now();
    const revision = policy.current(tenant);
    const { since } = bounds;
    // One after the other: a report is no hurry, and holds one connection.
    const uses = await store.uses(tenant, since);
    const lately = bounds.unusedFor === now - since ? uses : await store.uses(tenant, now - bounds.unusedFor);
    const tasks = await store.tasksByAgent(tenant, since);
    const denials = await store.denials(tenant, since, maxDenials);
    const { grants, incomplete } = await grantsOf(revision, now, yieldNow);
    const used = new Set(lately.map(({ agent, tool, tier }) => `${agent} ${tool} ${tier}`));
    const unused = grants.filter(({ agent, tool, tier }) => !used.has(`${agent} ${tool} ${tier}`));
    const issuedBy = sums(
      uses,
      ({ agent }) => agent,
      ({ issued }) => issued,
    );
    const renewedBy = sums(
      uses,
      ({ agent }) => agent,
      ({ renewed }) => renewed,
    );
    const deniedBy = sums(
      denials,
      ({ agent }) => agent,
      ({ count }) => count,
    );
    const issuedAt = sums(uses, access, ({ issued }) => issued);
    const grantedAt = sums(grants, access, () => 1);

    return {
      since,
      until: now,
      revision: revision.digest,
      agents: [...revision.agents.values()]
        .sort((a, b) => (a.name < b.name ? -1 : 1))
        .slice(0, maxEntries)
        .map((agent) => ({
          agent,
          review: reviewOf(agent, now, bounds.reviewAhead),
          tasks: tasks.get(agent.name) ?? 0,
          issued: issuedBy.get(agent.name) ?? 0,
          renewed: renewedBy.get(agent.name) ?? 0,
          denied: deniedBy.get(agent.name) ?? 0,
        })),
      tools: [...revision.tools.values()]
        .sort((a, b) => (a.name < b.name ? -1 : 1))
        .flatMap((tool) =>
          tiers.flatMap((tier) => {
            const registered = tool.tiers[tier];
            if (registered === undefined) return [];
            const key = access({ tool: tool.name, tier });
            const { owner, name } = tool;
            const { revocation } = registered;
            const [agents, issued] = [grantedAt.get(key) ?? 0, issuedAt.get(key) ?? 0];
            return [{ tool: name, tier, owner, revocation, agents, issued }];
          }),
        )
        .slice(0, maxEntries),
      unusedGrants: unused.slice(0, maxUnused),
      grants: grants.length,
      unused: unused.length,
      grantsIncomplete: incomplete,
      denials,
      approvals: await store.approvals(tenant, since),
      leaseOutcomes: await store.leaseOutcomes(tenant, since),
      taskOutcomes: await store.taskOutcomes(tenant, since),
      controls,
    };
  };
}

/** Every tool and tier that some rule may let an agent use, whatever its condition says at the moment. */
async function grantsOf(revision: PolicyRevision, now: Instant, yieldNow: () => Promise<void>) {
  const grants: Grant[] = [];
  let looked = 0;
  for (const agent of revision.agents.keys()) {
    for (const tool of revision.tools.values()) {
      for (const tier of tiers) {
        if (tool.tiers[tier] === undefined) continue;
        if (++looked > maxCombinations) return { grants, incomplete: true };
        if (looked % slice === 0) await yieldNow();
        const rule = grantingRule(revision, agent, tool.name, tier, now);
        if (rule !== undefined) grants.push({ agent, tool: tool.name, tier, rule });
      }
    }
  }
  return { grants, incomplete: false };
}

function grantingRule(
  revision: PolicyRevision,
  agent: string,
  tool: string,
  tier: Tier,
  now: Instant,
): string | undefined {
  let granting: string | undefined;
  let denied = false;
  const task = {
    taskId: '',
    parentTaskId: undefined,
    agent,
    opener: '',
    context: {},
    labels: {},
    openedAt: now,
    deadline: now,
  };
  revision.decide({ task, workload: undefined, access: { tool, tier }, now, renewal: undefined }, (rule) => {
    if (rule.effect === 'deny') denied ||= rule.when === undefined;
    else granting ??= rule.rule;
  });
  // A rule without a condition that denies takes it away for good.
  return denied ? undefined : granting;
}

function reviewOf(agent: Agent, now: Instant, ahead: Millis): Review {
  const end = reviewEnd(agent);
  if (end === undefined) return 'none';
  if (now >= end) return 'overdue';
  return now + ahead >= end ? 'due' : 'later';
}

function access({ tool, tier }: ToolAccess): string {
  return `${tool} ${tier}`;
}

function sums<T>(items: readonly T[], key: (item: T) => string, value: (item: T) => number): Map<string, number> {
  const totals = new Map<string, number>();
  for (const item of items) totals.set(key(item), (totals.get(key(item)) ?? 0) + value(item));
  return totals;
}
