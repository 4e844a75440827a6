import type { DecisionInput } from '../domain/policy.ts';
import type { Instant } from '../domain/time.ts';

type Labels = Readonly<Record<string, string>>;

/**
 * What a condition sees. One class per variable, because the expression engine knows a declared type by its constructor.
 * CEL integers are BigInt. The task's intent is not here: free text never decides (design §3.8).
 */
export class AgentView {
  readonly name: string;
  readonly owner: string;
  readonly labels: Labels;
  constructor(agent: { name: string; owner: string; labels: Labels }) {
    this.name = agent.name;
    this.owner = agent.owner;
    this.labels = agent.labels;
  }
}

export class ToolView {
  readonly name: string;
  readonly owner: string;
  readonly labels: Labels;
  constructor(tool: { name: string; owner: string; labels: Labels }) {
    this.name = tool.name;
    this.owner = tool.owner;
    this.labels = tool.labels;
  }
}

export class TaskView {
  readonly id: string;
  readonly opener: string;
  readonly context: Labels;
  readonly age: bigint;
  constructor(task: DecisionInput['task'], now: Instant) {
    this.id = task.taskId;
    this.opener = task.opener;
    this.context = task.context;
    this.age = seconds(now - task.openedAt);
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

export class TimeView {
  readonly now: Date;
  readonly hour: bigint;
  readonly minute: bigint;
  readonly weekday: bigint;
  constructor(now: Instant) {
    this.now = new Date(now);
    this.hour = BigInt(this.now.getUTCHours());
    this.minute = BigInt(this.now.getUTCMinutes());
    this.weekday = BigInt(this.now.getUTCDay());
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
}

/** The declared variables and their fields; what conditions are type-checked against. `weekday` 0 is Sunday; times are UTC. */
export const variables = {
  agent: { ctor: AgentView, fields: { name: 'string', owner: 'string', labels: 'map<string, string>' } },
  tool: { ctor: ToolView, fields: { name: 'string', owner: 'string', labels: 'map<string, string>' } },
  task: { ctor: TaskView, fields: { id: 'string', opener: 'string', context: 'map<string, string>', age: 'int' } },
  caller: { ctor: CallerView, fields: { workload: 'string' } },
  renewal: { ctor: RenewalView, fields: { active: 'bool', count: 'int', age: 'int' } },
  time: {
    ctor: TimeView,
    fields: { now: 'google.protobuf.Timestamp', hour: 'int', minute: 'int', weekday: 'int' },
  },
} as const;

export function fieldsOf(variable: string): Readonly<Record<string, string>> | undefined {
  return Object.hasOwn(variables, variable) ? variables[variable as keyof typeof variables].fields : undefined;
}

function seconds(millis: number): bigint {
  return BigInt(Math.max(0, Math.floor(millis / 1000)));
}
