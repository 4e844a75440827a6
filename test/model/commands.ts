import { randomUUID } from 'node:crypto';
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';
import { expect } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { ApprovalState, Verdict } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import type { OpenTaskResponse } from '../../src/gen/leasehold/v1/task_service_pb.js';
import {
  accesses,
  above,
  allowsRenewal,
  askInModel,
  closeInModel,
  decideInModel,
  ended,
  handOverInModel,
  isAgentLocked,
  isLocked,
  issueOutcome,
  maxTaskLife,
  mayOpenChild,
  mayRenew,
  moveDeadline,
  takeApproval,
  type Access,
  type AgentName,
  type Model,
  type ModelScope,
  type ModelTask,
} from './reference.ts';
import { signalCommands } from './signals.ts';
import {
  command,
  index,
  issueAt,
  pick,
  pickLease,
  received,
  replica,
  slack,
  tolerated,
  type Command,
  type ReplicaIndex,
} from './steps.ts';
import { timeCommands } from './time.ts';
import { answered, toolAndTier } from './world.ts';

function openTask(agent: AgentName, tools: readonly Access[], replica: ReplicaIndex): Command {
  return command(`open(${agent}, ${tools.join(' ')}, r${replica})`, 'nothing', async (model, world) => {
    const { replicas } = world;
    const result = await answered(replicas[replica].tasks.openTask(taskOf(agent, tools)));
    if ('refused' in result) {
      const locked = isAgentLocked(model, agent) && result.refused.reason === 'LOCKED';
      expect(locked || tolerated(world, result.refused), JSON.stringify(result.refused)).toBe(true);
      return;
    }
    expect(isAgentLocked(model, agent)).toBe(false);
    model.tasks.push(opened(result.answer, agent, tools, undefined));
  });
}

const taskOf = (agent: AgentName, tools: readonly Access[]) => ({
  intent: 'model',
  agent,
  agentWorkload: devWorkload(`agent/${agent}`),
  tools: tools.map(toolAndTier),
});

function opened(
  { task }: OpenTaskResponse,
  agent: AgentName,
  tools: readonly Access[],
  parent: ModelTask | undefined,
): ModelTask {
  const deadline = timestampMs(task!.deadline!);
  if (parent !== undefined) expect(deadline).toBeLessThanOrEqual(parent.deadline);
  const openedAt = timestampMs(task!.openTime!);
  return { taskId: task!.taskId, parent, agent, tools, open: true, openedAt, deadline, leases: [], approvals: [] };
}

/** By whoever opened the parent; `stranger`: by an agent that has nothing to do with it. */
function openChild(
  at: number,
  agent: AgentName,
  tools: readonly Access[],
  stranger: boolean,
  replica: ReplicaIndex,
): Command {
  const text = `child(${at}, ${agent}, ${tools.join(' ')}${stranger ? ', by a stranger' : ''}, r${replica})`;
  return command(text, 'task', async (model, world) => {
    const { replicas } = world;
    const parent = pick(model.tasks, at);
    const by = stranger
      ? replicas[replica].openers[parent.agent === 'alpha' ? 'beta' : 'alpha']
      : replicas[replica].tasks;
    const result = await answered(by.openTask({ ...taskOf(agent, tools), parentTaskId: parent.taskId }));
    const allowed = !stranger && mayOpenChild(model, parent, agent, tools);
    if ('refused' in result) {
      expect(allowed && !tolerated(world, result.refused), JSON.stringify(result)).toBe(false);
      return;
    }
    expect(allowed).toBe(true);
    model.tasks.push(opened(result.answer, agent, tools, parent));
  });
}

function issue(at: number, agent: AgentName, access: Access, replica: ReplicaIndex): Command {
  return command(`issue(${at}, ${agent}, ${access}, r${replica})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    const requestId = randomUUID();
    const expected = issueOutcome(model, task, agent, access);
    const result = await issueAt(replicas[replica], task, agent, access, requestId);
    if ('answer' in result) {
      expect(expected).toBe('granted');
      takeApproval(task, access);
      task.leases.push(received(model, task, access, requestId, result.answer.credential!));
      return;
    }
    const { refused } = result;
    if (tolerated(world, refused)) return;
    if (expected === 'asks') {
      expect(refused.reason).toBe('APPROVAL_REQUIRED');
      askInModel(model, task, refused.approval!);
      return;
    }
    expect(expected, JSON.stringify(refused)).toBe('refused');
  });
}

/** The same request again, on either replica: the same lease or a refusal, never another lease. */
function retry(at: number, replica: ReplicaIndex): Command {
  return command(`retry(${at}, r${replica})`, 'lease', async (model, world) => {
    const { replicas } = world;
    const { task, lease } = pickLease(model, at);
    if (lease.renewals > 0 || lease.agent !== task.agent) return;
    const result = await issueAt(replicas[replica], task, task.agent, lease.access, lease.requestId);
    if ('refused' in result) {
      const due = task.open && lease.live && !isLocked(model, task, lease.access);
      expect(due && !tolerated(world, result.refused), JSON.stringify(result)).toBe(false);
      return;
    }
    const stands = task.open && !lease.stopped && lease.expiresAt > model.now();
    expect(stands && !isLocked(model, task, lease.access)).toBe(true);
    // As it was handed out, though the deadline was moved ahead since: it ends with the task.
    const asThen = { ...task, deadline: Math.max(task.deadline, lease.expiresAt) };
    const again = received(model, asThen, lease.access, lease.requestId, result.answer.credential!);
    expect(again.leaseId).toBe(lease.leaseId);
    expect(again.expiresAt).toBe(lease.expiresAt);
    lease.secrets.push(...again.secrets);
  });
}

function renew(at: number, replica: ReplicaIndex): Command {
  return command(`renew(${at}, r${replica})`, 'lease', async (model, world) => {
    const { replicas } = world;
    const { task, lease } = pickLease(model, at);
    const requestId = randomUUID();
    const allowed = mayRenew(model, task, lease);
    const result = await answered(
      replicas[replica].agents[task.agent].renewCredential({ requestId, leaseId: lease.leaseId }),
    );
    if ('refused' in result) {
      expect(allowed && !tolerated(world, result.refused), JSON.stringify(result)).toBe(false);
      return;
    }
    expect(allowed || (lease.doubtful && allowsRenewal(model, task, lease))).toBe(true);
    const { credential } = result.answer;
    const next = { ...received(model, task, lease.access, requestId, credential!), renewals: lease.renewals + 1 };
    expect(next.leaseId).not.toBe(lease.leaseId);
    expect(credential!.lease!.renewedFromLeaseId).toBe(lease.leaseId);
    ended(lease);
    task.leases.push(next);
  });
}

function giveBack(at: number, replica: ReplicaIndex): Command {
  return command(`return(${at}, r${replica})`, 'lease', async (model, world) => {
    const { replicas } = world;
    const { task, lease } = pickLease(model, at);
    const result = await answered(replicas[replica].agents[task.agent].returnCredential({ leaseId: lease.leaseId }));
    if ('refused' in result) {
      expect(lease.live && !tolerated(world, result.refused), JSON.stringify(result)).toBe(false);
      return;
    }
    ended(lease);
  });
}

/** Another agent than the lease's tries its hand at it, be it the one that the task was handed over to. */
function steal(at: number, replica: ReplicaIndex): Command {
  return command(`steal(${at}, r${replica})`, 'lease', async (model, world) => {
    const { replicas } = world;
    const { task, lease } = pickLease(model, at);
    const thief = replicas[replica].agents[lease.agent === 'alpha' ? 'beta' : 'alpha'];
    const tries = [
      thief.renewCredential({ leaseId: lease.leaseId }),
      thief.returnCredential({ leaseId: lease.leaseId }),
      thief.issueCredential({ requestId: lease.requestId, taskId: task.taskId, ...toolAndTier(lease.access) }),
    ];
    for (const result of await Promise.all(tries.map((call) => answered<unknown>(call)))) {
      expect(result).toHaveProperty('refused');
    }
  });
}

function close(at: number, replica: ReplicaIndex): Command {
  return command(`close(${at}, r${replica})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    const result = await answered(replicas[replica].tasks.closeTask({ taskId: task.taskId }));
    expect(result).toHaveProperty('answer');
    closeInModel(model, task);
  });
}

/** By whoever opened it, to the other agent. Of roots only: below others, those above have their say. */
function handOver(at: number, replica: ReplicaIndex): Command {
  return command(`hand-over(${at}, r${replica})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    if (task.parent !== undefined) return;
    const agent: AgentName = task.agent === 'alpha' ? 'beta' : 'alpha';
    const result = await answered(
      replicas[replica].tasks.handOverTask({
        taskId: task.taskId,
        agent,
        agentWorkload: devWorkload(`agent/${agent}`),
        justification: 'a change of shift',
      }),
    );
    // A lock on the agent before is no reason to leave its work with it.
    const isTaskLocked = model.locks.some(({ scope }) => scope.kind === 'task' && scope.task === task);
    const allowed = task.open && !isTaskLocked && !isAgentLocked(model, agent);
    if ('refused' in result) {
      expect(allowed && !tolerated(world, result.refused), JSON.stringify(result)).toBe(false);
      return;
    }
    expect(allowed).toBe(true);
    handOverInModel(model, task, agent);
  });
}

function extend(at: number, minutes: number, replica: ReplicaIndex): Command {
  return command(`extend(${at}, ${minutes} min, r${replica})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    const deadline = model.now() + minutes * 60_000;
    const result = await answered(
      replicas[replica].tasks.extendTask({ taskId: task.taskId, deadline: timestampFromMs(deadline) }),
    );
    // Close to the parent's the two clocks decide.
    const longest = task.openedAt + maxTaskLife;
    const room = Math.min(longest, task.parent?.deadline ?? Infinity) - deadline;
    if ('refused' in result) {
      const free = !isLocked(model, task);
      expect(task.open && free && room > slack && !tolerated(world, result.refused), JSON.stringify(result)).toBe(
        false,
      );
      return;
    }
    expect(task.open && room >= 0).toBe(true);
    moveDeadline(model, task, timestampMs(result.answer.task!.deadline!));
  });
}

function vote(at: number, approves: boolean, replica: ReplicaIndex): Command {
  return command(`${approves ? 'approve' : 'deny'}(${at}, r${replica})`, 'approval', async (model, world) => {
    const { replicas } = world;
    const { task, approval } = pick(
      model.tasks.flatMap((one) => one.approvals.map((known) => ({ task: one, approval: known }))),
      at,
    );
    const result = await answered(
      replicas[replica].approver.decideApproval({
        approvalId: approval.approvalId,
        verdict: approves ? Verdict.APPROVE : Verdict.DENY,
      }),
    );
    const allowed = task.open && approval.state === 'pending';
    if ('refused' in result) {
      expect(allowed && !tolerated(world, result.refused), JSON.stringify(result)).toBe(false);
      return;
    }
    if (allowed) decideInModel(model, approval, approves);
    // The same word again is no error, and changes nothing. Of a task that has ended the word is of no consequence.
    else if (task.open && approval.state !== 'approved')
      expect(result.answer.approval!.state).not.toBe(ApprovalState.APPROVED);
  });
}

/** A close on one replica and issues on both, at the same moment. */
function closeAgainstIssues(at: number, access: Access, replica: ReplicaIndex): Command {
  return command(`close(${at}, r${replica}) ‖ 4 × issue(${access})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    const couldIssue = issueOutcome(model, task, task.agent, access) === 'granted';
    const requestIds = Array.from({ length: 4 }, () => randomUUID());
    const issues = requestIds.map((id, n) => issueAt(replicas[(n % 2) as ReplicaIndex], task, task.agent, access, id));
    const closed = await answered(replicas[replica].tasks.closeTask({ taskId: task.taskId }));
    expect(closed).toHaveProperty('answer');
    const after = await issueAt(replicas[replica], task, task.agent, access, randomUUID());
    expect(after).toHaveProperty('refused');
    let got = 0;
    for (const [n, result] of (await Promise.all(issues)).entries()) {
      if ('refused' in result) continue;
      got += 1;
      takeApproval(task, access);
      task.leases.push(received(model, task, access, requestIds[n]!, result.answer.credential!));
    }
    if (!couldIssue) expect(got).toBe(0);
    closeInModel(model, task);
  });
}

/** A close of a whole tree on one replica while children are opened below it, and used, on both. */
function closeAgainstOpens(at: number, agent: AgentName, replica: ReplicaIndex): Command {
  return command(`close-tree(${at}, r${replica}) ‖ 3 × child(${agent})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    const root = above(task).at(-1) ?? task;
    const tools = [task.tools[0]!];
    const allowed = mayOpenChild(model, task, agent, tools);
    const opens = [0, 1, 0].map(async (n) => {
      const at = replicas[n as ReplicaIndex];
      const result = await answered(at.tasks.openTask({ ...taskOf(agent, tools), parentTaskId: task.taskId }));
      if ('refused' in result) return undefined;
      const child = opened(result.answer, agent, tools, task);
      const requestId = randomUUID();
      const used = await issueAt(at, child, agent, tools[0]!, requestId);
      if ('answer' in used) child.leases.push(received(model, child, tools[0]!, requestId, used.answer.credential!));
      return child;
    });
    const closed = await answered(replicas[replica].tasks.closeTask({ taskId: root.taskId }));
    expect(closed).toHaveProperty('answer');
    for (const child of await Promise.all(opens)) {
      if (child === undefined) continue;
      expect(allowed).toBe(true);
      const late = await issueAt(replicas[replica], child, agent, tools[0]!, randomUUID());
      expect(late).toHaveProperty('refused');
      model.tasks.push(child);
    }
    closeInModel(model, root);
  });
}

/** One request on both replicas at once, as after a lost answer. */
function twice(at: number, access: Access): Command {
  return command(`twice(${at}, ${access})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    const couldIssue = issueOutcome(model, task, task.agent, access) === 'granted';
    const requestId = randomUUID();
    const results = await Promise.all(replicas.map((replica) => issueAt(replica, task, task.agent, access, requestId)));
    const got = results.flatMap((result) => ('answer' in result ? [result.answer.credential!] : []));
    for (const result of results) {
      if ('answer' in result || result.refused.reason !== 'APPROVAL_REQUIRED') continue;
      askInModel(model, task, result.refused.approval!);
    }
    if (got.length === 0) {
      const all = results.every((result) => 'refused' in result && tolerated(world, result.refused));
      expect(couldIssue && !all, JSON.stringify(results)).toBe(false);
      return;
    }
    expect(couldIssue).toBe(true);
    expect(new Set(got.map(({ lease }) => lease!.leaseId)).size).toBe(1);
    takeApproval(task, access);
    const [first, ...others] = got.map((credential) => received(model, task, access, requestId, credential));
    task.leases.push({ ...first!, secrets: [first!, ...others].flatMap(({ secrets }) => secrets) });
  });
}

/** One approval with one use, and issues on both replicas at once. */
function spendTwice(at: number): Command {
  return command(`spend(${at})`, 'approval', async (model, world) => {
    const { replicas } = world;
    const task = pick(
      model.tasks.filter((one) => one.approvals.length > 0),
      at,
    );
    const expected = issueOutcome(model, task, task.agent, 'api:write');
    const uses = task.approvals.filter(({ state }) => state === 'approved').length;
    const requestIds = Array.from({ length: 4 }, () => randomUUID());
    const results = await Promise.all(
      requestIds.map((id, n) => issueAt(replicas[(n % 2) as ReplicaIndex], task, task.agent, 'api:write', id)),
    );
    let got = 0;
    for (const [n, result] of results.entries()) {
      if ('answer' in result) {
        got += 1;
        takeApproval(task, 'api:write');
        task.leases.push(received(model, task, 'api:write', requestIds[n]!, result.answer.credential!));
      } else if (result.refused.reason === 'APPROVAL_REQUIRED') {
        askInModel(model, task, result.refused.approval!);
      }
    }
    expect(got).toBeLessThanOrEqual(uses);
    const all = results.every((result) => 'refused' in result && tolerated(world, result.refused));
    if (expected === 'granted' && !all) expect(got).toBeGreaterThan(0);
  });
}

function scopeOf(model: Model, kind: ModelScope['kind'], at: number): ModelScope | undefined {
  if (kind === 'agent') return { kind, agent: at % 2 === 0 ? 'alpha' : 'beta' };
  if (kind === 'tool') return { kind, tool: at % 2 === 0 ? 'api' : 'db' };
  return model.tasks.length === 0 ? undefined : { kind, task: pick(model.tasks, at) };
}

function lockScope(scope: ModelScope) {
  if (scope.kind === 'agent') return { scope: { case: 'agent' as const, value: scope.agent } };
  if (scope.kind === 'tool') return { scope: { case: 'tool' as const, value: { tool: scope.tool } } };
  return { scope: { case: 'taskId' as const, value: scope.task.taskId } };
}

/** Issues are under way on both replicas when it is placed; none succeeds that begins after it has been answered. */
function lock(
  kind: ModelScope['kind'],
  at: number,
  access: Access,
  minutes: number | undefined,
  replica: ReplicaIndex,
): Command {
  const time = minutes === undefined ? '' : `, ${minutes} min`;
  return command(`lock(${kind} ${at}${time}, r${replica}) ‖ issues(${access})`, 'task', async (model, world) => {
    const { replicas } = world;
    const task = pick(model.tasks, at);
    const scope = scopeOf(model, kind, at)!;
    const before = issueOutcome(model, task, task.agent, access);
    const requestIds = Array.from({ length: 4 }, () => randomUUID());
    const issues = requestIds.map((id, n) => issueAt(replicas[(n % 2) as ReplicaIndex], task, task.agent, access, id));
    const expiresAt = minutes === undefined ? Infinity : model.now() + minutes * 60_000;
    const placed = await answered(
      replicas[replica].locks.createLock({
        scope: lockScope(scope),
        reason: 'the model says so',
        ...(minutes === undefined ? {} : { expireTime: timestampFromMs(expiresAt) }),
      }),
    );
    if ('refused' in placed) throw new Error(JSON.stringify(placed));
    model.locks.push({ lockId: placed.answer.lock!.lockId, scope, expiresAt });
    if (isLocked(model, task, access)) {
      for (const late of replicas) {
        expect(await issueAt(late, task, task.agent, access, randomUUID())).toHaveProperty('refused');
      }
    }
    for (const [n, result] of (await Promise.all(issues)).entries()) {
      if ('refused' in result) {
        const { approval } = result.refused;
        if (approval !== undefined) askInModel(model, task, approval);
        continue;
      }
      expect(before).toBe('granted');
      takeApproval(task, access);
      task.leases.push(received(model, task, access, requestIds[n]!, result.answer.credential!));
    }
  });
}

function lift(at: number, replica: ReplicaIndex): Command {
  return command(`lift(${at}, r${replica})`, 'nothing', async (model, world) => {
    const { replicas } = world;
    if (model.locks.length === 0) return;
    const index = at % model.locks.length;
    const lifted = await answered(
      replicas[replica].locks.liftLock({ lockId: model.locks[index]!.lockId, reason: 'the model says so' }),
    );
    expect(lifted).toHaveProperty('answer');
    model.locks.splice(index, 1);
  });
}

const agent = fc.constantFrom<AgentName>('alpha', 'beta');
const access = fc.constantFrom<Access>(...accesses);
const likely = fc.constantFrom<Access>('api:read', 'api:write', 'db:read');
const scopes = fc.constantFrom<ModelScope['kind']>('agent', 'tool', 'task');
const tools = fc.subarray([...accesses], { minLength: 1 });

/** One sequence: mostly what agents do all day, with the rare and the hostile in between. */
export const sequences = (maxCommands: number, replayPath: string | undefined) => {
  const often = [
    fc.tuple(agent, tools, replica).map((args) => openTask(...args)),
    fc.tuple(index, agent, access, replica).map((args) => issue(...args)),
    fc
      .tuple(index, agent, tools, fc.boolean(), replica)
      .map(([at, name, some, unlikely, where]) => openChild(at, name, some, unlikely && at % 5 === 0, where)),
    fc.tuple(index, fc.constant<AgentName>('alpha'), likely, replica).map((args) => issue(...args)),
    fc
      .tuple(index, fc.constant<AgentName>('alpha'), fc.constant<Access>('api:write'), replica)
      .map((args) => issue(...args)),
    fc.tuple(index, replica).map((args) => renew(...args)),
    fc.tuple(index, fc.boolean(), replica).map((args) => vote(...args)),
  ];
  const rarely = [
    fc.tuple(index, replica).map((args) => retry(...args)),
    fc.tuple(index, replica).map((args) => giveBack(...args)),
    fc.tuple(index, replica).map((args) => steal(...args)),
    fc.tuple(index, replica).map((args) => close(...args)),
    fc.tuple(index, fc.integer({ min: 3, max: 90 }), replica).map((args) => extend(...args)),
    fc.tuple(index, likely, replica).map((args) => closeAgainstIssues(...args)),
    fc.tuple(index, likely).map((args) => twice(...args)),
    fc.tuple(index, agent, replica).map((args) => closeAgainstOpens(...args)),
    fc.tuple(index, replica).map((args) => handOver(...args)),
    fc.tuple(scopes, index, likely, fc.constantFrom(undefined, 5, 45), replica).map((args) => lock(...args)),
    fc.tuple(index, replica).map((args) => lift(...args)),
    fc.tuple(index, replica).map((args) => lift(...args)),
    index.map((at) => spendTwice(at)),
    ...timeCommands,
    ...signalCommands,
  ];
  // Every kind is as likely as another: what is to happen more often stands here more often.
  return fc.commands([...often, ...often, ...often, ...rarely], {
    maxCommands,
    size: 'max',
    ...(replayPath === undefined ? {} : { replayPath }),
  });
};
