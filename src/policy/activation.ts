import type { Arguments, ArgumentSpecs } from '../domain/arguments.ts';
import type { CalledAccess, Facts, RateNeed } from '../domain/facts.ts';
import { rateKey } from '../domain/facts.ts';
import type { Agent, DecisionInput, Tool } from '../domain/policy.ts';
import { subjectKinds } from '../domain/signals/model.ts';
import type { SignalFact, SubjectKind } from '../domain/signals/model.ts';
import { reviewOverdue } from '../domain/review.ts';
import type { Instant, Millis } from '../domain/time.ts';
import { wallClock } from './wall-clock.ts';

type Labels = Readonly<Record<string, string>>;

/**
 * What a condition sees. One class per variable, because the expression engine knows a declared type by its constructor.
 * CEL integers are BigInt. A field that is undefined makes the condition fail, so that what is not known lets nothing
 * through. The task's intent is not here: free text never decides (design §3.8).
 */
export class AgentView {
  readonly name: string;
  readonly owner: string;
  readonly labels: Labels;
  readonly risk: string | undefined;
  readonly reviewBy: Date | undefined;
  readonly overdue: boolean;
  constructor(agent: Agent, now: Instant) {
    this.name = agent.name;
    this.owner = agent.owner;
    this.labels = agent.labels;
    this.risk = agent.risk;
    this.reviewBy = agent.reviewBy === undefined ? undefined : new Date(agent.reviewBy);
    this.overdue = reviewOverdue(agent, now);
  }
}

export class ToolView {
  readonly name: string;
  readonly owner: string;
  readonly labels: Labels;
  readonly sensitivity: string | undefined;
  constructor(tool: Tool) {
    this.name = tool.name;
    this.owner = tool.owner;
    this.labels = tool.labels;
    this.sensitivity = tool.labels['sensitivity'];
  }
}

export class TaskView {
  readonly id: string;
  readonly opener: string;
  readonly orchestrator: string | undefined;
  readonly context: Labels;
  readonly labels: Labels;
  readonly age: bigint;
  readonly remaining: bigint;
  readonly depth: bigint | undefined;
  constructor(task: DecisionInput['task'], facts: Facts | undefined, now: Instant) {
    const isRoot = task.parentTaskId === undefined;
    const depth = isRoot ? 0 : facts?.lineage?.depth;
    this.id = task.taskId;
    this.opener = task.opener;
    this.orchestrator = isRoot ? task.opener : facts?.lineage?.orchestrator;
    this.context = task.context;
    this.labels = task.labels;
    this.age = seconds(now - task.openedAt);
    this.remaining = seconds(task.deadline - now);
    this.depth = depth === undefined ? undefined : BigInt(depth);
  }
}

export class CallerView {
  readonly workload: string;
  constructor(workload: string | undefined) {
    this.workload = workload ?? '';
  }
}

export class RenewalView {
  readonly active: boolean;
  readonly count: bigint;
  readonly age: bigint;
  constructor(renewal: DecisionInput['renewal']) {
    this.active = renewal !== undefined;
    this.count = BigInt(renewal?.count ?? 0);
    this.age = seconds(renewal?.age ?? 0);
  }
}

/** The moment of the decision as clocks show it in one time zone. `weekday` 0 is Sunday. */
export class TimeView {
  readonly now: Date;
  readonly timeZone: string;
  constructor(now: Date, timeZone: string) {
    this.now = now;
    this.timeZone = timeZone;
  }
  get hour(): bigint {
    return BigInt(wallClock(this.now, this.timeZone).hour);
  }
  get minute(): bigint {
    return BigInt(wallClock(this.now, this.timeZone).minute);
  }
  get weekday(): bigint {
    return BigInt(wallClock(this.now, this.timeZone).weekday);
  }
  get date(): string {
    return wallClock(this.now, this.timeZone).date;
  }
  zone(timeZone: string): TimeView {
    return new TimeView(this.now, timeZone);
  }
}

export class HeldItem {
  readonly tool: string;
  readonly tier: string;
  readonly count: bigint;
  constructor(tool: string, tier: string, count: number) {
    this.tool = tool;
    this.tier = tier;
    this.count = BigInt(count);
  }
}

/** What the tree of the task holds or has held: what was read does not get unread when its credential ends. */
export class HeldView {
  readonly items: readonly HeldItem[] | undefined;
  readonly #tools: ReadonlyMap<string, Tool>;
  constructor(facts: Facts | undefined, tools: ReadonlyMap<string, Tool>) {
    this.items = facts?.held?.map(({ tool, tier, count }) => new HeldItem(tool, tier, count));
    this.#tools = tools;
  }
  tool(name: string): boolean {
    return known(this.items).some((item) => item.tool === name);
  }
  access(tool: string, tier: string): boolean {
    return known(this.items).some((item) => item.tool === tool && item.tier === tier);
  }
  /** A tool that is registered no longer has no labels to look at. */
  label(name: string, value: string): boolean {
    return known(this.items).some((item) => this.#tools.get(item.tool)?.labels[name] === value);
  }
}

export class CalledItem {
  readonly tool: string;
  readonly tier: string;
  readonly reported: bigint;
  readonly attested: bigint;
  constructor({ tool, tier, reported, attested }: CalledAccess) {
    this.tool = tool;
    this.tier = tier;
    this.reported = BigInt(reported);
    this.attested = BigInt(attested);
  }
}

/** Which calls the tree of the task has on record. An agent that keeps quiet is in none: `held` knows what it could do. */
export class CalledView {
  readonly items: readonly CalledItem[] | undefined;
  readonly #tools: ReadonlyMap<string, Tool>;
  constructor(facts: Facts | undefined, tools: ReadonlyMap<string, Tool>) {
    this.items = facts?.called?.map((access) => new CalledItem(access));
    this.#tools = tools;
  }
  tool(name: string): boolean {
    return known(this.items).some((item) => item.tool === name);
  }
  access(tool: string, tier: string): boolean {
    return known(this.items).some((item) => item.tool === tool && item.tier === tier);
  }
  /** The tool itself says so: the only word on which something may be allowed. */
  attested(tool: string, tier: string): boolean {
    return known(this.items).some((item) => item.tool === tool && item.tier === tier && item.attested > 0n);
  }
  label(name: string, value: string): boolean {
    return known(this.items).some((item) => this.#tools.get(item.tool)?.labels[name] === value);
  }
}

export class CountView {
  readonly #facts: Facts | undefined;
  constructor(facts: Facts | undefined) {
    this.#facts = facts;
  }
  task(tool: string | undefined): bigint {
    const held = known(this.#facts?.held).filter((item) => tool === undefined || item.tool === tool);
    return BigInt(held.reduce((sum, item) => sum + item.count, 0));
  }
}

export class RateView {
  readonly #facts: Facts | undefined;
  constructor(facts: Facts | undefined) {
    this.#facts = facts;
  }
  of(scope: RateNeed['scope'], window: Millis, tool: string | undefined): bigint {
    return BigInt(known(this.#facts?.rates.get(rateKey({ scope, window, tool }))));
  }
}

export class SignalItem {
  readonly subject: string;
  readonly kind: string;
  readonly value: bigint;
  readonly source: string;
  constructor({ subject, kind, value, source }: SignalFact) {
    this.subject = subject;
    this.kind = kind;
    this.value = BigInt(value);
    this.source = source;
  }
}

/** Signals in force about the agent, its workload, the tool, and the task with those above it. Reasons never decide. */
export class SignalsView {
  readonly items: readonly SignalItem[] | undefined;
  constructor(facts: Facts | undefined) {
    this.items = facts?.signals?.map((signal) => new SignalItem(signal));
  }
  has(kind: string, subject: SubjectKind | undefined): boolean {
    return this.#of(kind, subject).length > 0;
  }
  /** The highest; 0 when there is none. */
  value(kind: string, subject: SubjectKind | undefined): bigint {
    return this.#of(kind, subject).reduce((most, { value }) => (value > most ? value : most), 0n);
  }
  #of(kind: string, subject: SubjectKind | undefined): SignalItem[] {
    return known(this.items).filter(
      (item) => item.kind === kind && (subject === undefined || item.subject === subject),
    );
  }
}

/** The highest risk score that any source gives, 0 when none does. */
export class RiskView {
  readonly agent: bigint | undefined;
  readonly workload: bigint | undefined;
  readonly tool: bigint | undefined;
  readonly task: bigint | undefined;
  readonly highest: bigint | undefined;
  constructor(signals: SignalsView) {
    if (signals.items === undefined) return;
    for (const subject of subjectKinds) this[subject] = signals.value('risk', subject);
    this.highest = signals.value('risk', undefined);
  }
}

/** Arguments of the request, by the types that the tool's tier gives them. */
export class ArgsView {
  [name: string]: bigint | number | string | boolean;
  constructor(args: Arguments, specs: ArgumentSpecs) {
    for (const [name, value] of Object.entries(args)) {
      this[name] = specs[name]?.type === 'integer' ? BigInt(value as number) : value;
    }
  }
}

export class ListsView {
  [name: string]: readonly string[];
  constructor(lists: Readonly<Record<string, readonly string[]>>) {
    Object.assign(this, lists);
  }
}

export interface Activation extends Record<string, unknown> {
  agent: AgentView;
  tool: ToolView;
  task: TaskView;
  tier: string;
  caller: CallerView;
  renewal: RenewalView;
  time: TimeView;
  held: HeldView;
  called: CalledView;
  count: CountView;
  rate: RateView;
  signals: SignalsView;
  risk: RiskView;
  environment: Labels;
  lists: ListsView;
  /** Undefined while no request has been made: a plan. */
  args: ArgsView | undefined;
}

/** The declared variables and their fields; what conditions are type-checked against. */
export const variables = {
  agent: {
    ctor: AgentView,
    fields: {
      name: 'string',
      owner: 'string',
      labels: 'map<string, string>',
      risk: 'string',
      reviewBy: 'google.protobuf.Timestamp',
      overdue: 'bool',
    },
  },
  tool: {
    ctor: ToolView,
    fields: { name: 'string', owner: 'string', labels: 'map<string, string>', sensitivity: 'string' },
  },
  task: {
    ctor: TaskView,
    fields: {
      id: 'string',
      opener: 'string',
      orchestrator: 'string',
      context: 'map<string, string>',
      labels: 'map<string, string>',
      age: 'int',
      remaining: 'int',
      depth: 'int',
    },
  },
  caller: { ctor: CallerView, fields: { workload: 'string' } },
  renewal: { ctor: RenewalView, fields: { active: 'bool', count: 'int', age: 'int' } },
  time: {
    ctor: TimeView,
    fields: { now: 'google.protobuf.Timestamp', hour: 'int', minute: 'int', weekday: 'int', date: 'string' },
  },
  held: { ctor: HeldView, fields: { items: 'list<HeldItem>' } },
  called: { ctor: CalledView, fields: { items: 'list<CalledItem>' } },
  count: { ctor: CountView, fields: {} },
  rate: { ctor: RateView, fields: {} },
  signals: { ctor: SignalsView, fields: { items: 'list<SignalItem>' } },
  risk: { ctor: RiskView, fields: { agent: 'int', workload: 'int', tool: 'int', task: 'int', highest: 'int' } },
} as const;

/** Fields of what the variables hold, and of the methods' results. */
export const heldItemFields = { tool: 'string', tier: 'string', count: 'int' } as const;
export const calledItemFields = { tool: 'string', tier: 'string', reported: 'int', attested: 'int' } as const;

export const signalItemFields = { subject: 'string', kind: 'string', value: 'int', source: 'string' } as const;

export function fieldsOf(variable: string): Readonly<Record<string, string>> | undefined {
  return Object.hasOwn(variables, variable) ? variables[variable as keyof typeof variables].fields : undefined;
}

/** Something that storage knows and was not asked: in a plan, before any credential is asked for. */
export class UnknownFact extends Error {}

function known<T>(value: T | undefined): T {
  if (value === undefined) throw new UnknownFact();
  return value;
}

function seconds(millis: number): bigint {
  return BigInt(Math.max(0, Math.floor(millis / 1000)));
}
