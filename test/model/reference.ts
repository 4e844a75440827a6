/**
 * What the broker is held to, in as few words as can be: a task, its leases, its approvals, and when a request may
 * succeed. It knows nothing of storage, replicas or time beyond the deadline.
 */
export const accesses = ['api:read', 'api:write', 'api:execute', 'db:read', 'db:write'] as const;
export type Access = (typeof accesses)[number];
export type AgentName = 'alpha' | 'beta';

/** Longest life of each tier in milliseconds, as in fixtures/model.yaml. */
export const maxLife: Record<Access, number> = {
  'api:read': 600_000,
  'api:write': 300_000,
  'api:execute': 60_000,
  'db:read': 600_000,
  'db:write': 300_000,
};

/** What policy says when everything else is in order. */
export const policy: Record<AgentName, Partial<Record<Access, 'allow' | 'approval'>>> = {
  alpha: { 'api:read': 'allow', 'db:read': 'allow', 'api:write': 'approval' },
  beta: { 'api:read': 'allow', 'db:read': 'allow', 'db:write': 'allow' },
};
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
  /** Not returned, not superseded, its task open. */
  live: boolean;
  /** What must be found nowhere in the broker's database: of each time that it was handed out. */
  secrets: string[];
  /** The login at its target. */
  role: string | undefined;
}

export interface ModelApproval {
  approvalId: string;
  state: 'pending' | 'approved' | 'denied' | 'used' | 'void';
}

export interface ModelTask {
  taskId: string;
  parent: ModelTask | undefined;
  agent: AgentName;
  tools: readonly Access[];
  open: boolean;
  deadline: number;
  leases: ModelLease[];
  approvals: ModelApproval[];
}

export type ModelScope =
  { kind: 'agent'; agent: AgentName } | { kind: 'tool'; tool: string } | { kind: 'task'; task: ModelTask };

export interface Model {
  tasks: ModelTask[];
  /** In force. */
  locks: { lockId: string; scope: ModelScope }[];
  /** By replica: its clock was moved so far that it may refuse everything. */
  mayRefuse: [boolean, boolean];
}

export const emptyModel = (): Model => ({ tasks: [], locks: [], mayRefuse: [false, false] });

/** Whether a first issue has to succeed, has to be refused, or has to be refused with a question to people. */
export function issueOutcome(
  model: Model,
  task: ModelTask,
  agent: AgentName,
  access: Access,
): 'granted' | 'asks' | 'refused' {
  if (isLocked(model, task, access)) return 'refused';
  if (!task.open || task.agent !== agent || !task.tools.includes(access)) return 'refused';
  const rule = ruleOf(task, access);
  if (rule === undefined) return 'refused';
  if (rule === 'allow') return 'granted';
  if (task.approvals.some(({ state }) => state === 'approved')) return 'granted';
  return task.approvals.some(({ state }) => state === 'denied') ? 'refused' : 'asks';
}

export function above(task: ModelTask): ModelTask[] {
  return task.parent === undefined ? [] : [task.parent, ...above(task.parent)];
}

/** At most what every task above may do: one that is denied it denies it, one that has to ask makes it ask. */
function ruleOf(task: ModelTask, access: Access): 'allow' | 'approval' | undefined {
  const rules = [task, ...above(task)].map(({ agent }) => policy[agent][access]);
  if (rules.includes(undefined)) return undefined;
  return rules.includes('approval') ? 'approval' : 'allow';
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
  if (ruleOf(task, access) !== 'approval') return;
  const used = task.approvals.find(({ state }) => state === 'approved');
  if (used === undefined) throw new Error('issued without an approval');
  used.state = 'used';
}

export function mayRenew(model: Model, task: ModelTask, lease: ModelLease): boolean {
  return (
    !isLocked(model, task, lease.access) && task.open && lease.live && lease.renewals < (maxRenewals[lease.access] ?? 0)
  );
}

/** With everything below it. */
export function closeInModel(model: Model, closed: ModelTask): void {
  for (const task of model.tasks) {
    if (task !== closed && !above(task).includes(closed)) continue;
    task.open = false;
    for (const lease of task.leases) lease.live = false;
  }
}

/** To another agent: nothing goes along. */
export function handOverInModel(model: Model, task: ModelTask, agent: AgentName): void {
  task.agent = agent;
  for (const lease of task.leases) lease.live = false;
  for (const approval of task.approvals) if (approval.state !== 'used') approval.state = 'void';
  for (const child of model.tasks) if (child.parent === task) closeInModel(model, child);
}

/** Also of those below it, which never outlive it. */
export function moveDeadline(model: Model, moved: ModelTask, deadline: number): void {
  for (const task of model.tasks) {
    if (task === moved) task.deadline = deadline;
    else if (task.open && above(task).includes(moved)) task.deadline = Math.min(task.deadline, deadline);
    // What would outlive it may be ended with it: it is not counted on any more.
    for (const lease of task.leases) if (lease.expiresAt > task.deadline) lease.live = false;
  }
}
