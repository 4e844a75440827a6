import { randomUUID } from 'node:crypto';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import fc from 'fast-check';
import { expect } from 'vitest';
import { moments, passTime, stopInModel, type AgentName, type Model, type ModelTask } from './reference.ts';
import { stopped } from './signals.ts';
import { command, eventually, issueAt, replica, type Command, type ReplicaIndex } from './steps.ts';
import { answered, toolAndTier, type Replica, type World } from './world.ts';

/** So far from every moment at which something changes that no difference between clocks is of consequence. */
const margin = 30_000;

/** At least so far, and to a moment at which the model is sure. */
function landing(model: Model, by: number): number {
  const now = model.now();
  let at = now + by;
  for (const moment of moments(model).toSorted((a, b) => a - b)) {
    if (Math.abs(moment - at) < margin) at = moment + margin;
  }
  return at - now;
}

/** What a task that has just come to its deadline is still asked for, before any worker can have come to it. */
async function refusedAtOnce({ replicas }: World, task: ModelTask, now: number): Promise<void> {
  const extensions = replicas.map(({ tasks }) =>
    tasks.extendTask({ taskId: task.taskId, deadline: timestampFromMs(now + 600_000) }),
  );
  const issues = replicas.map((each) => issueAt(each, task, task.agent, task.tools[0]!, randomUUID()));
  const renewals = task.leases
    .slice(0, 2)
    .map(({ leaseId }) => replicas[0].agents[task.agent].renewCredential({ leaseId }));
  const calls = [...extensions, ...renewals].map((call) => answered<unknown>(call));
  for (const result of await Promise.all([...issues, ...calls])) expect(result).toHaveProperty('refused');
}

/** Minutes or hours go by for everybody at once, and nobody calls. */
function jump(minutes: number): Command {
  return command(`+${minutes} min`, 'nothing', async (model, world) => {
    const { clock, database } = world;
    const open = model.tasks.filter((task) => task.open);
    const { locks } = model;
    await clock.advance(landing(model, minutes * 60_000));
    passTime(model);
    const stops = stopInModel(model);
    const ended = open.filter((task) => !task.open);
    // Signing keys may have to be changed, and clocks to be compared again.
    await ready(world.replicas);
    for (const task of ended.slice(0, 2)) await refusedAtOnce(world, task, model.now());
    // Tasks close by themselves, and locks end: until a worker has come to them they count for those beside them.
    await eventually('tasks closed by their deadline', async () => {
      const { rows } = await database.query<{ state: string; cause: string }>(
        'SELECT state, close_cause AS cause FROM tasks WHERE task_id = ANY($1)',
        [ended.map(({ taskId }) => taskId)],
      );
      for (const { state, cause } of rows) if (state !== 'open') expect(['deadline', 'parent_closed']).toContain(cause);
      return rows.every(({ state }) => state !== 'open');
    });
    const over = locks.filter((lock) => !model.locks.includes(lock)).map(({ lockId }) => lockId);
    await eventually('locks that have ended', async () => {
      const { rows } = await database.query(`SELECT FROM locks WHERE lock_id = ANY($1) AND state = 'active'`, [over]);
      return rows.length === 0;
    });
    await stopped(world, stops);
  });
}

async function ready(replicas: readonly Replica[]): Promise<void> {
  for (const each of replicas) await eventually('a replica that can issue', () => each.ready());
}

/** As far as clocks may differ, and be none the worse for it. */
function moveClock(replica: ReplicaIndex, ahead: number): Command {
  return command(`clock(r${replica}, ${ahead} ms)`, 'nothing', (_, { replicas }) => {
    replicas[replica].clock.ahead = ahead;
    return Promise.resolve();
  });
}

/** Further than they may differ: that replica issues and opens nothing until its clock is right again. The other goes on. */
function breakClock(replica: ReplicaIndex, agent: AgentName, ahead: number, skip: number): Command {
  return command(
    `broken-clock(r${replica}, ${ahead} ms${skip === 0 ? '' : ', not now'})`,
    'task',
    async (model, world) => {
      if (skip > 0) return;
      const broken = world.replicas[replica];
      const before = broken.clock.ahead;
      broken.clock.ahead = ahead;
      await eventually('a broken clock', async () => !(await broken.ready()));
      const task = model.tasks.at(-1)!;
      const access = task.tools[0]!;
      const tried = [
        issueAt(broken, task, task.agent, access, randomUUID()),
        answered(broken.tasks.openTask({ intent: 'model', agent, tools: [toolAndTier(access)] })),
      ];
      for (const result of await Promise.all<unknown>(tried)) {
        expect(result).toMatchObject({ refused: { reason: 'CLOCK_SKEW' } });
      }
      broken.clock.ahead = before;
      await ready([broken]);
    },
  );
}

const minutes = fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 20, max: 360 }));

export const timeCommands = [
  minutes.map((each) => jump(each)),
  minutes.map((each) => jump(each)),
  fc.tuple(replica, fc.constantFrom(-4_000, -500, 0, 500, 4_000)).map((args) => moveClock(...args)),
  fc
    .tuple(replica, fc.constantFrom<AgentName>('alpha', 'beta'), fc.constantFrom(-20_000, 20_000), fc.nat(9))
    .map((args) => breakClock(...args)),
];
