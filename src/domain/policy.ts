import type { ArgumentLimits, Arguments, ArgumentSpecs } from './arguments.ts';
import type { FactNeeds, Facts } from './facts.ts';
import type { RevocationKind, Task, Tier, ToolAccess } from './model.ts';
import type { Instant, Millis } from './time.ts';

/** One tier of a tool as registered: who makes the credential, how long it may live, what revoking it means. */
export interface ToolTier {
  /** `jwt`, or the provider kind that `options` is for. */
  provider: string;
  revocation: RevocationKind;
  /** Nobody should ever use it: a use is told as a signal. */
  canary?: boolean;
  ttl: { min: Millis; default: Millis; max: Millis };
  /** What the agent may do, for `authorization_details` (RFC 9396). */
  actions: readonly string[];
  /** What a request may say about one use; absent: nothing. */
  arguments?: ArgumentSpecs;
  /** Provider's own options, validated at load (postgres: target, groupRole, statements). */
  options: Readonly<Record<string, unknown>>;
}

export interface Tool {
  name: string;
  owner: string;
  description: string;
  /** Resource identifier (RFC 8707): the audience of its tokens. */
  resource: string;
  labels: Readonly<Record<string, string>>;
  /** Workloads of the tool itself, exact or with a trailing `/*`: their word on its own calls is that of the target. */
  workloads: readonly string[];
  tiers: Readonly<Partial<Record<Tier, ToolTier>>>;
}

export interface Agent {
  name: string;
  owner: string;
  description: string;
  /** ISO date on which the owner has to look at it again. */
  reviewBy: string | undefined;
  /** `low`, `medium`, `high` or `critical`; undefined when nobody has said. */
  risk: string | undefined;
  labels: Readonly<Record<string, string>>;
  /** Exact workloads, or patterns with a trailing `/*` that covers one or more path segments. */
  workloads: readonly string[];
  /** To whom its tasks may hand work on; undefined: to nobody. */
  delegation?: Delegation | undefined;
}

/** What an agent's tasks may open below themselves. */
export interface Delegation {
  /** Names of agents. */
  to: readonly string[];
  /** Levels of tasks below one of its tasks. */
  maxDepth: number;
  /** Open tasks directly below one of its tasks. */
  maxOpenChildren: number;
}

export interface RenewalContext {
  /** Renewals already made in this line. */
  count: number;
  /** Milliseconds since the first lease of the line was issued. */
  age: Millis;
  /** Milliseconds since the lease that is to be renewed was issued. */
  sinceIssue: Millis;
  /** Renewals and milliseconds since the line's last approval; undefined when it had none. */
  sinceApproval?: { count: number; age: Millis } | undefined;
  /** Whether the task was opened with a heartbeat and has not missed it. */
  heartbeat: boolean;
}

export interface DecisionInput {
  task: Pick<Task, 'taskId' | 'parentTaskId' | 'agent' | 'opener' | 'context' | 'labels' | 'openedAt' | 'deadline'>;
  /** Workload that asks; undefined for the plan made before the agent has called. */
  workload: string | undefined;
  access: ToolAccess;
  now: Instant;
  renewal: RenewalContext | undefined;
  /** What the request says about this use, checked against the tier; undefined for a forecast, which has no request. */
  arguments?: Arguments | undefined;
  /** What `needs` asked for; undefined when nothing was asked. A rule that needs what is missing lets nothing through. */
  facts?: Facts | undefined;
}

/** One rule's demand for approvals: this many different people out of these. */
export interface Quorum {
  rule: string;
  /** Group names, workloads or patterns of workloads; empty: the owner of the tool or of the agent. */
  approvers: readonly string[];
  count: number;
}

/** What an approval has to be, and what it then covers. Several rules merge to the strictest; each keeps its quorum. */
export interface ApprovalTerms {
  quorums: readonly Quorum[];
  /** How many credentials one approval covers. */
  uses: number;
  /** Not decided within this: a deny. */
  decideWithin: Millis;
  /** How long it can be used once it is given. */
  validFor: Millis;
  /** After a deny the same request is refused for so long, before people are asked again. */
  coolDown: Millis;
  /** Life of a credential that is issued on the approval. */
  ttl: Millis;
}

export type Effect = 'allow' | 'deny' | 'needs_approval';
export type SenderConstraint = 'dpop' | 'mtls';

/** What a credential is bound to beside its life. Several rules merge to the strictest. */
export interface Obligations {
  /** Narrower than the tier's own limits, by argument. */
  argumentLimits?: ArgumentLimits;
  /** How old a credential has to be before it is renewed. */
  renewNotBefore?: Millis;
  senderConstraint?: SenderConstraint;
}

/** How one rule that is about this request came out; for those who explain a decision. */
export interface ConsideredRule {
  rule: string;
  /** The task above whose agent it was asked for; undefined: the task itself. */
  taskId?: string;
  effect: 'allow' | 'deny' | 'require_approval';
  /** Whether its condition held; a text says why that could not be told. */
  held: boolean | { failed: string };
  /** The condition as written. */
  when: string | undefined;
  /** What it looked at, worked out only for those who ask. */
  saw: () => readonly { expression: string; value: string }[];
}

export interface Decision {
  effect: Effect;
  /** `<policy>/<rule>` that decided; empty when none matched. */
  rule: string;
  /** One sentence for the caller. */
  reason: string;
  /** Life that policy grants, within the tier's bounds; the deadline still applies. Present only with `allow`. */
  ttl: Millis | undefined;
  /** Present only with `needs_approval`. */
  approval?: ApprovalTerms;
  /** Present with `allow` and `needs_approval`, when there is any. */
  obligations?: Obligations;
}

/** What policy says while no request has been made, where that depends on the request. */
export interface OpenDecision {
  effect: 'depends';
  rule: string;
  /** One sentence for the caller. */
  reason: string;
  /** What decides, as conditions name it: `args.amount`, `caller.workload`, `rate.agent('1h')`. */
  dependsOn: readonly string[];
  /** All that it can still come to. */
  possible: readonly Effect[];
  /** Longest life that it may have. */
  ttl: Millis;
  /** What is certain, and the sender constraint that may be asked for. */
  obligations?: Obligations;
}

/** One immutable, compiled revision of the policy documents. */
export interface PolicyRevision {
  /** `sha256:<hex>` over the canonical documents. */
  digest: string;
  agents: ReadonlyMap<string, Agent>;
  tools: ReadonlyMap<string, Tool>;
  /** Agents whose `workloads` cover this workload. Memoised: it is asked on every call. */
  agentsOf(workload: string): ReadonlySet<string>;
  /** Tools whose `workloads` cover this workload. Memoised like the above. */
  toolsOf(workload: string): ReadonlySet<string>;
  /** Whether what this revision no longer allows is to be settled at once, rather than at its next renewal. */
  reevaluate: boolean;
  /** Whether any of its rules reads signals or review dates; and whether one that is about this does. */
  watching: boolean;
  watches(agent: string, access: ToolAccess): boolean;
  /** What storage has to be asked before `decide`; undefined, as for nearly all, when nothing. */
  needs(agent: string, access: ToolAccess, renewal: boolean, taskAge: Millis): FactNeeds | undefined;
  /**
   * Deny wins, no match is a deny, an error in a condition is a deny (design §3.7, §3.8). Pure. `considered` hears of
   * every rule that is about the request.
   */
  decide(input: DecisionInput, considered?: (rule: ConsideredRule) => void): Decision;
  /**
   * What can be said before a request is made: never a deny or an allow that a request could turn into something else by
   * what it declares, or by who makes it. Without `input.facts`, what storage counts is open as well. Pure.
   */
  forecast(input: DecisionInput): Decision | OpenDecision;
}

/** The running revision of one tenant. */
export interface TenantPolicy {
  current(): PolicyRevision;
  /** Why the newest edit was refused, undefined when it is the one running. */
  lastError(): string | undefined;
}

/** The running revisions, one for each tenant. No policy at all is a revision that denies everything. */
export interface PolicySource {
  tenants: readonly string[];
  /** Throws for a tenant that is none: nobody is attested into one. */
  current(tenant: string): PolicyRevision;
  /** Why the newest edit was refused, undefined when it is the one running. */
  lastError(tenant: string): string | undefined;
}
