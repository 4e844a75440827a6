import { afterAll, beforeAll, expect, test } from 'vitest';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import {
  brokerRows,
  callers,
  editPolicy,
  eventually,
  expectSettled,
  leasesOf,
  logIn,
  loginOf,
  openTask,
  ordersSeenBy,
  reportsRead,
  tokenOf,
  claimsOf,
  warehouseRead,
} from './support.ts';

/** What ends without anybody asking. */
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
beforeAll(async () => {
  estate = await createEstate('byitself', { tasks: { renewalOverlap: '1s' } });
  await editPolicy(estate, 'tools.yaml', (text) => text.replaceAll('min: 1m, default: 5m', 'min: 1s, default: 5m'));
  await editPolicy(estate, 'analyst.yaml', (text) => text.replace('ttl: 10m', 'ttl: 3s'));
  broker = await startInProcess(estate);
});
afterAll(async () => {
  await broker?.stop();
  await estate?.remove();
});

const task = async (taskId: string) =>
  (await brokerRows(estate, 'SELECT state, close_cause FROM tasks WHERE task_id = $1', [taskId]))[0];

test.concurrent('leases run out by themselves with outcome expired, and the task stays open', async () => {
  const { agent } = callers(estate);
  const taskId = await openTask(estate);
  await agent.issueCredential({ taskId, ...reportsRead });
  const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
  const session = await logIn(loginOf(credential));
  const ended = new Promise((resolve) => session.once('end', resolve));
  await eventually(async () => {
    const leases = await leasesOf(estate, taskId);
    expect(leases.map((lease) => [lease['state'], lease['outcome'], lease['settle_cause']])).toEqual([
      ['settled', 'expired', 'expired'],
      ['settled', 'expired', 'expired'],
    ]);
  });
  await ended;
  await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
  for (const lease of await leasesOf(estate, taskId)) {
    expect((lease['settled_at'] as Date).getTime()).toBeGreaterThanOrEqual((lease['expires_at'] as Date).getTime());
  }
  expect(await task(taskId)).toEqual({ state: 'open', close_cause: null });
});

test.concurrent('a task whose deadline passes is closed with that cause, and no credential outlives it', async () => {
  const { agent, orchestrator } = callers(estate);
  const { task: opened } = await orchestrator.openTask({
    intent: 'short',
    agent: 'analyst',
    tools: [reportsRead, warehouseRead],
    ttl: { seconds: 2n, nanos: 0 },
  });
  const { taskId, deadline } = opened!;
  const token = await agent.issueCredential({ taskId, ...reportsRead });
  const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
  expect(Number(claimsOf(tokenOf(token.credential))['exp'])).toBeLessThanOrEqual(Number(deadline!.seconds) + 1);
  await expectSettled(estate, taskId);
  expect(await task(taskId)).toEqual({ state: 'closed', close_cause: 'deadline' });
  await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
});

test.concurrent('an opener that goes silent has its task closed; one that is heard has not', async () => {
  const { agent, orchestrator } = callers(estate);
  const open = async () => {
    const answer = await orchestrator.openTask({
      intent: 'heartbeats',
      agent: 'analyst',
      tools: [reportsRead, warehouseRead],
      heartbeatInterval: { seconds: 2n, nanos: 0 },
    });
    return answer.task!.taskId;
  };
  const [silent, heard] = [await open(), await open()];
  const { credential } = await agent.issueCredential({ taskId: silent, ...warehouseRead });
  await eventually(async () => {
    await orchestrator.heartbeatTask({ taskId: heard });
    expect(await task(silent)).toMatchObject({ close_cause: 'heartbeat_lost' });
  });
  await orchestrator.heartbeatTask({ taskId: heard });
  await expectSettled(estate, silent);
  await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
  expect(await task(heard)).toEqual({ state: 'open', close_cause: null });
  await orchestrator.closeTask({ taskId: heard });
});

test.concurrent('a shortened deadline ends what was issued under the longer one', async () => {
  const { agent, orchestrator } = callers(estate);
  const taskId = await openTask(estate);
  const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
  const soon = Date.now() + 1_200;
  const deadline = { seconds: BigInt(Math.floor(soon / 1_000)), nanos: (soon % 1_000) * 1_000_000 };
  await orchestrator.extendTask({ taskId, deadline });
  await expectSettled(estate, taskId);
  expect(await task(taskId)).toEqual({ state: 'closed', close_cause: 'deadline' });
  await expect(ordersSeenBy(loginOf(credential))).rejects.toThrow();
});

test.concurrent('a stream renews when it is time, not whenever something else of its task changes', async () => {
  const { agent, orchestrator } = callers(estate);
  const taskId = await openTask(estate);
  const stream = agent.streamCredential({ taskId, ...reportsRead });
  const times: { issued: number; expires: number }[] = [];
  const following = (async () => {
    for await (const { credential } of stream) {
      const { issueTime, expireTime } = credential!.lease!;
      const ms = (at: typeof issueTime) => Number(at!.seconds) * 1_000 + at!.nanos / 1e6;
      times.push({ issued: ms(issueTime), expires: ms(expireTime) });
    }
  })();
  await eventually(async () => expect(times).toHaveLength(1));
  // The settlement of a returned lease wakes whoever watches the task.
  const { credential } = await agent.issueCredential({ taskId, ...reportsRead });
  await agent.returnCredential({ leaseId: credential!.lease!.leaseId });
  await eventually(async () => expect(times.length).toBeGreaterThanOrEqual(4));
  await orchestrator.closeTask({ taskId });
  await following;
  const gaps = times.slice(1).map(({ issued }, index) => issued - times[index]!.issued);
  // Two thirds of three seconds, and always before the end of the one before.
  for (const gap of gaps) expect(gap).toBeGreaterThanOrEqual(1_900);
  for (const [index, { issued }] of times.slice(1).entries()) expect(issued).toBeLessThan(times[index]!.expires);
  await expectSettled(estate, taskId);
});
