/**
 * What the broker is held to, in as few words as can be: a task, its leases, its approvals, what is said of it, and when a
 * request may succeed. It knows nothing of storage, replicas or workers: what time ends has ended when its time has come.
 */
export const accesses = ['api:read', 'api:write', 'api:execute', 'db:read', 'db:write'] as const;
export type Access = (typeof accesses)[number];
export type AgentName = 'alpha' | 'beta';

/** Longest life of each tier in milliseconds, as in fixtures/model.yaml. */
export const maxLife: Record<Access, number> = {
  'api:read': 600_000,
  'api:write': 300_000,
  'api:execute': 1_800_000,
  'db:read': 600_000,
  'db:write': 300_000,
};

/** Shortest life of every tier; all of them last longer by default. */
const minLife = 60_000;

/** What policy says when everything else is in order. `vouched`: while somebody vouches for the agent. */
type Rule = 'allow' | 'approval' | 'vouched';
export const policy: Record<AgentName, Partial<Record<Access, Rule>>> = {
  alpha: { 'api:read': 'allow', 'db:read': 'allow', 'api:write': 'approval' },
  beta: { 'api:read': 'allow', 'db:read': 'allow', 'db:write': 'allow', 'api:execute': 'vouched' },
};
/** For a question to people, an answer of theirs, and what is refused after they said no, or nothing. */
const [decideWithin, validFor, coolDown] = [300_000, 900_000, 3_600_000];
/** Longest life of a task. */
export const maxTaskLife = 86_400_000;
/** What policy says of tasks below those of an agent. */
export const delegation: Record<AgentName, { to: readonly AgentName[]; maxDepth: number; maxOpenChildren: number }> = {
  alpha: { to: ['alpha', 'beta'], maxDepth: 2, maxOpenChildren: 2 },
  beta: { to: ['beta'], maxDepth: 1, maxOpenChildren: 1 },
};
export const maxRenewals: Partial<Record<Access, number>> = { 'api:read': 40, 'db:read': 40 };

export interface ModelLease {
  leaseId: string;
  requestId: string;
  access: Access;
  /** Who got it: a task can be handed over. */
  agent: AgentName;
  expiresAt: number;
  renewals: number;
  /** Not returned, not superseded, not run out, its task open. */
  live: boolean;
  /** Was live when the deadline was moved ahead of its end: until then it may be ended, or go on. */
  doubtful: boolean;
  /** A signal ended it. */
  stopped: boolean;
  /** What must be found nowhere in the broker's database: of each time that it was handed out. */
  secrets: string[];
  /** The login at its target. */
  role: string | undefined;
}

export interface ModelApproval {
  approvalId: string;
  /** Denied is also what nobody answered in time; void what is of no further consequence. */
  state: 'pending' | 'approved' | 'denied' | 'used' | 'void';
  /** When time makes something else of it; nothing more happens to what is used or void. */
  until: number;
}

export interface ModelTask {
  taskId: string;
  parent: ModelTask | undefined;
  agent: AgentName;
  tools: readonly Access[];
  open: boolean;
  openedAt: number;
  deadline: number;
  leases: ModelLease[];
  approvals: ModelApproval[];
}

export type ModelScope =
  { kind: 'agent'; agent: AgentName } | { kind: 'tool'; tool: string } | { kind: 'task'; task: ModelTask };

/** What one source says of one subject under one kind; its next word takes the place of the one before. */
export interface ModelSignal {
  signalId: string;
  subject: ModelScope | { kind: 'workload'; agent: AgentName };
  source: string;
  kind: 'x_quarantine' | 'risk' | 'x_vouched';
  value: number;
  expiresAt: number;
}

export interface Model {
  now: () => number;
  tasks: ModelTask[];
  /** In force. */
  locks: { lockId: string; scope: ModelScope; expiresAt: number }[];
  /** In force. */
  signals: ModelSignal[];
}

export const emptyModel = (now: () => number): Model => ({ now, tasks: [], locks: [], signals: [] });

/** Whether a first issue has to succeed, has to be refused, or has to be refused with a question to people. */
export function issueOutcome(
  model: Model,
  task: ModelTask,
  agent: AgentName,
  access: Access,
): 'granted' | 'asks' | 'refused' {
  if (isLocked(model, task, access)) return 'refused';
  if (!task.open || task.agent !== agent || !task.tools.includes(access)) return 'refused';
  const rule = ruleOf(model, task, access);
  if (rule === undefined || model.now() > task.deadline - leastLife(task)) return 'refused';
  if (rule === 'allow') return 'granted';
  if (task.approvals.some(({ state }) => state === 'approved')) return 'granted';
  return task.approvals.some(({ state }) => state === 'denied') ? 'refused' : 'asks';
}

export function above(task: ModelTask): ModelTask[] {
  return task.parent === undefined ? [] : [task.parent, ...above(task.parent)];
}

/** A credential that lives shorter is not made; a task that has not room for two of that length takes less. */
function leastLife({ openedAt, deadline }: ModelTask): number {
  return Math.max(1_000, Math.min(minLife, deadline - openedAt - minLife));
}

/** At most what every task above may do: one that is denied it denies it, one that has to ask makes it ask. */
function ruleOf(model: Model, task: ModelTask, access: Access): 'allow' | 'approval' | undefined {
  const chain = [task, ...above(task)];
  if (chain.some((one) => isQuarantined(model, one, access))) return undefined;
  const rules = chain.map(({ agent }) => {
    const rule = policy[agent][access];
    return rule === 'vouched' && !isVouched(model, agent) ? undefined : rule;
  });
  if (rules.includes(undefined)) return undefined;
  return rules.includes('approval') ? 'approval' : 'allow';
}

export function quarantines({ kind, value }: ModelSignal): boolean {
  return kind === 'x_quarantine' || (kind === 'risk' && value >= 70);
}

/** Only reading is. By what is said of the task itself (also of those above it), its agent, its workload or the tool. */
export function isQuarantined(model: Model, task: ModelTask, access: Access): boolean {
  if (!access.endsWith(':read')) return false;
  return model.signals.some((signal) => {
    const { subject } = signal;
    if (!quarantines(signal)) return false;
    if (subject.kind === 'tool') return access.startsWith(`${subject.tool}:`);
    if (subject.kind === 'task') return [task, ...above(task)].includes(subject.task);
    return subject.agent === task.agent;
  });
}

export function isVouched({ signals }: Model, agent: AgentName): boolean {
  return signals.some(
    ({ kind, subject }) => kind === 'x_vouched' && subject.kind === 'agent' && subject.agent === agent,
  );
}

/** Leases that do not stand after what was said, or is not said any more. */
export function stopInModel(model: Model): ModelLease[] {
  return model.tasks.flatMap((task) =>
    task.leases.filter((lease) => {
      const reads = lease.access.endsWith(':read') || lease.access === 'api:execute';
      if (!reads || ruleOf(model, task, lease.access) !== undefined) return false;
      const { live } = lease;
      ended(lease);
      if (!live) return false;
      lease.stopped = true;
      return true;
    }),
  );
}

/** By its agent or any above it, by itself or any above it, or by the tool that it wants to use. */
export function isLocked({ locks }: Model, task: ModelTask, access?: Access): boolean {
  const chain = [task, ...above(task)];
  return locks.some(({ scope }) => {
    if (scope.kind === 'agent') return chain.some(({ agent }) => agent === scope.agent);
    if (scope.kind === 'task') return chain.includes(scope.task);
    return access?.startsWith(`${scope.tool}:`) === true;
  });
}

export function isAgentLocked({ locks }: Model, agent: AgentName): boolean {
  return locks.some(({ scope }) => scope.kind === 'agent' && scope.agent === agent);
}

export function mayOpenChild(model: Model, parent: ModelTask, agent: AgentName, tools: readonly Access[]): boolean {
  const chain = [parent, ...above(parent)];
  const rule = delegation[parent.agent];
  const children = model.tasks.filter((task) => task.parent === parent && task.open).length;
  return (
    parent.open &&
    !isLocked(model, parent) &&
    !isAgentLocked(model, agent) &&
    rule.to.includes(agent) &&
    chain.every((hop, index) => index + 1 <= delegation[hop.agent].maxDepth) &&
    children < rule.maxOpenChildren &&
    tools.every((access) => parent.tools.includes(access))
  );
}

/** On success: takes the use of the approval with it, as the issuing write does. */
export function takeApproval(task: ModelTask, access: Access): void {
  if (![task, ...above(task)].some(({ agent }) => policy[agent][access] === 'approval')) return;
  const used = task.approvals.find(({ state }) => state === 'approved');
  if (used === undefined) throw new Error('issued without an approval');
  used.state = 'used';
}

export function mayRenew(model: Model, task: ModelTask, lease: ModelLease): boolean {
  return lease.live && allowsRenewal(model, task, lease);
}

/** For one that has not ended. */
export function allowsRenewal(model: Model, task: ModelTask, lease: ModelLease): boolean {
  return (
    !isLocked(model, task, lease.access) &&
    task.open &&
    ruleOf(model, task, lease.access) === 'allow' &&
    model.now() <= task.deadline - leastLife(task) &&
    lease.renewals < (maxRenewals[lease.access] ?? 0)
  );
}

/** A question to people, as soon as the agent is told of it. */
export function askInModel(model: Model, task: ModelTask, approvalId: string): void {
  if (task.approvals.some((known) => known.approvalId === approvalId)) return;
  task.approvals.push({ approvalId, state: 'pending', until: Math.min(model.now() + decideWithin, task.deadline) });
}

export function decideInModel(model: Model, approval: ModelApproval, approves: boolean): void {
  approval.state = approves ? 'approved' : 'denied';
  approval.until = model.now() + (approves ? validFor : coolDown);
}

/** Of a credential, for certain. */
export function ended(lease: ModelLease): void {
  lease.live = false;
  lease.doubtful = false;
}

/** Everything whose time has come. */
export function passTime(model: Model): void {
  const now = model.now();
  for (const task of model.tasks) {
    if (task.open && task.deadline <= now) closeInModel(model, task);
    for (const lease of task.leases) if (lease.expiresAt <= now) ended(lease);
    for (const approval of task.approvals) {
      if (approval.state === 'pending' && approval.until <= now) {
        approval.state = 'denied';
        approval.until += coolDown;
      }
      if (['approved', 'denied'].includes(approval.state) && approval.until <= now) approval.state = 'void';
    }
  }
  model.locks = model.locks.filter(({ expiresAt }) => expiresAt > now);
  model.signals = model.signals.filter(({ expiresAt }) => expiresAt > now);
}

/** When time will change something. */
export function moments(model: Model): number[] {
  return [
    ...model.tasks
      .filter(({ open }) => open)
      .flatMap((task) => [
        task.deadline,
        task.deadline - leastLife(task),
        ...task.leases.filter(({ live }) => live).map(({ expiresAt }) => expiresAt),
        ...task.approvals.flatMap(({ state, until }) => (state === 'pending' ? [until, until + coolDown] : [until])),
      ]),
    ...model.locks.map(({ expiresAt }) => expiresAt),
    ...model.signals.map(({ expiresAt }) => expiresAt),
  ];
}

/** With everything below it. */
export function closeInModel(model: Model, closed: ModelTask): void {
  for (const task of model.tasks) {
    if (task !== closed && !above(task).includes(closed)) continue;
    task.open = false;
    for (const lease of task.leases) ended(lease);
  }
}

/** To another agent: nothing goes along. */
export function handOverInModel(model: Model, task: ModelTask, agent: AgentName): void {
  task.agent = agent;
  for (const lease of task.leases) ended(lease);
  // A no of people stands for whoever asks for the same.
  for (const approval of task.approvals) {
    if (approval.state === 'pending' || approval.state === 'approved') approval.state = 'void';
  }
  for (const child of model.tasks) if (child.parent === task) closeInModel(model, child);
}

/** Also of those below it, which never outlive it. */
export function moveDeadline(model: Model, moved: ModelTask, deadline: number): void {
  for (const task of model.tasks) {
    if (task === moved) task.deadline = deadline;
    else if (task.open && above(task).includes(moved)) task.deadline = Math.min(task.deadline, deadline);
    // What would outlive it may be ended with it: it is not counted on any more.
    for (const lease of task.leases) {
      if (!lease.live || lease.expiresAt <= task.deadline) continue;
      ended(lease);
      lease.doubtful = true;
    }
  }
}
