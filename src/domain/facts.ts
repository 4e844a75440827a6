import type { Task, Tier, ToolAccess } from './model.ts';
import type { SignalFact } from './signals/model.ts';
import type { Instant, Millis } from './time.ts';

/** A number of credentials, renewals not counted, that were issued within a window that ends now. */
export interface RateNeed {
  /** `task`: the whole tree of the task; `agent`: all its tasks; `tool`: whoever used it. */
  scope: 'task' | 'agent' | 'tool';
  window: Millis;
  /** Only credentials of this tool. With scope `tool` it is the tool that is asked for. */
  tool: string | undefined;
}

/** What a decision has to know that neither the request nor the task says. */
export interface FactNeeds {
  /** What the tree of the task holds or has held. */
  held: boolean;
  /** What tool calls the tree of the task has on record. */
  called: boolean;
  /** How deep the task is in its tree, and who opened the root. */
  lineage: boolean;
  /** What this very task has had of the tool and tier that is asked for. */
  earlier: boolean;
  rates: readonly RateNeed[];
  /** Signals in force about its task, agent, workload or tool. */
  signals: boolean;
}

export const noNeeds: FactNeeds = {
  held: false,
  called: false,
  lineage: false,
  earlier: false,
  rates: [],
  signals: false,
};

/**
 * Whether it looks at what further credentials change: then two decisions at the same moment have to see each other. Lineage
 * and signals are no such thing.
 */
export function counts(needs: FactNeeds | undefined): boolean {
  return needs !== undefined && (needs.held || needs.earlier || needs.rates.length > 0);
}

/** Credentials of one tool and tier that one task has had, in all lines, renewals included. */
export interface Earlier {
  credentials: number;
  /** When the first of them was issued. */
  since: Instant | undefined;
}

/** One tool and tier that the task's tree holds or has held. */
export interface HeldAccess {
  tool: string;
  tier: Tier;
  /** Credentials issued, renewals not counted. */
  count: number;
}

/** Calls of one tool and tier that the task's tree has on record. */
export interface CalledAccess {
  tool: string;
  tier: Tier;
  /** In the words of its agents. */
  reported: number;
  /** By the tool itself. */
  attested: number;
}

export interface Facts {
  /** Undefined when nothing asked for it: that is not the same as nothing held. */
  held: readonly HeldAccess[] | undefined;
  /** Undefined when nothing asked for it. */
  lineage: { depth: number; orchestrator: string } | undefined;
  /** Undefined when nothing asked for it. */
  earlier: Earlier | undefined;
  /** By `rateKey`. */
  rates: ReadonlyMap<string, number>;
  /** Undefined when nothing asked for it. */
  called?: readonly CalledAccess[] | undefined;
  /** Undefined when nothing asked for them. */
  signals?: readonly SignalFact[] | undefined;
}

/** Credentials that a decision does not count: the one that it is about, or the line that it would renew. */
export type Uncounted = { leaseId?: string; lineStartedAt?: Instant; taskId?: string };

/**
 * What storage knows. Asked only for decisions that have a rule which needs it, so that all others cost no query.
 * Implementations throw STORAGE_UNAVAILABLE rather than guess.
 */
export interface DecisionFacts {
  load(
    task: Pick<Task, 'tenant' | 'taskId' | 'rootTaskId' | 'parentTaskId' | 'agent' | 'agentWorkload'>,
    access: ToolAccess,
    needs: FactNeeds,
    now: Instant,
    except?: Uncounted,
  ): Promise<Facts>;
}

/** What a task that has just been opened has: nothing yet. */
export const noneEarlier: Earlier = { credentials: 0, since: undefined };
export const nothingYet: Facts = { held: [], called: [], lineage: undefined, earlier: noneEarlier, rates: new Map() };
/** Of a task below another: what its tree has is not its own to say. */
export const ownNothingYet: Facts = { ...nothingYet, held: undefined, called: undefined };

export function rateKey({ scope, window, tool }: RateNeed): string {
  return `${scope} ${window} ${tool ?? ''}`;
}

/** Undefined when neither needs anything. */
export function mergeNeeds(a: FactNeeds | undefined, b: FactNeeds | undefined): FactNeeds | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  const rates = new Map([...a.rates, ...b.rates].map((need) => [rateKey(need), need]));
  return {
    held: a.held || b.held,
    called: a.called || b.called,
    lineage: a.lineage || b.lineage,
    rates: [...rates.values()],
    signals: a.signals || b.signals,
    earlier: a.earlier || b.earlier,
  };
}
