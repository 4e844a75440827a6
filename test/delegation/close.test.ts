import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { CloseCause, TaskState } from '../../src/gen/leasehold/v1/common_pb.js';
import type { TaskNode } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { held, loginOf, loginRefusal, refusal, sql } from '../e2e/support.ts';
import { access, openChild, openRoot, startEstate, type Estate } from './support.ts';

let estate: Estate;
beforeAll(async () => {
  estate = await startEstate('closetree');
});
afterAll(() => estate.stop());

const rows = (text: string, values: unknown[] = []) => sql(estate.estate.databaseUrl, text, values);
const link = (name: string) => `agent/link/${name}`;
const below = (workload: string) => ({ agent: 'link', agentWorkload: devWorkload(link(workload)) });

async function openLinks() {
  const root = await openRoot(estate, 'link', { tools: [access.reports, access.warehouse] });
  const tools = [access.reports, access.warehouse];
  const child = await openChild(estate, link('1'), root.taskId, { ...below('2'), tools });
  const grandchild = await openChild(estate, link('2'), child.taskId, { ...below('3'), tools });
  return [root, child, grandchild] as const;
}

describe('closing a task', () => {
  test('settles everything below it, and answers with what became of each', async () => {
    const [root, child, grandchild] = await openLinks();
    const issue = (workload: string, taskId: string, wanted: typeof access.reports) =>
      estate.credentials(link(workload)).issueCredential({ taskId, ...wanted });
    await issue('2', child.taskId, access.reports);
    const { credential } = await issue('3', grandchild.taskId, access.warehouse);
    const login = loginOf(held({ credential }));
    expect(await loginRefusal(login)).toBeUndefined();

    const { task: open, children } = await estate.tasks('orchestrator').getTask({ taskId: root.taskId });
    expect(open!.state).toBe(TaskState.OPEN);
    expect(children.map(({ taskId }) => taskId)).toEqual([child.taskId]);

    const answer = await estate.tasks('orchestrator').closeTask({ taskId: root.taskId, wait: true });
    expect(answer).toMatchObject({ tasks: 3, unsettledTasks: 0, nextPageToken: '', summary: { revoked: 2 } });
    expect(answer.tree.map(({ taskId, parentTaskId, depth }) => [taskId, parentTaskId, depth])).toEqual([
      [root.taskId, '', 0],
      [child.taskId, root.taskId, 1],
      [grandchild.taskId, child.taskId, 2],
    ]);
    const causes = answer.tree.map(({ closeCause }) => closeCause);
    expect(causes).toEqual([CloseCause.REQUESTED, CloseCause.PARENT_CLOSED, CloseCause.PARENT_CLOSED]);
    expect(answer.tree.map(({ state }) => state)).toEqual([TaskState.CLOSED, TaskState.CLOSED, TaskState.CLOSED]);
    expect(answer.tree.map(({ summary }) => summary!.revoked)).toEqual([0, 1, 1]);
    expect(await loginRefusal(login)).toBeDefined();
    const feed = await rows('SELECT task_id FROM leasehold.revocations WHERE task_id = ANY($1)', [
      [root.taskId, child.taskId, grandchild.taskId],
    ]);
    expect(feed).toEqual([{ task_id: child.taskId }]);
    const events = await rows(
      `SELECT task_id, kind, count(*)::int AS count FROM leasehold.audit_events
       WHERE task_id = ANY($1) AND kind IN ('task.closed', 'task.settled') GROUP BY 1, 2`,
      [[root.taskId, child.taskId, grandchild.taskId]],
    );
    expect(events).toHaveLength(6);
  });

  test('leaves those beside and above it open', async () => {
    const [root, child] = await openLinks();
    const beside = await openChild(estate, link('1'), root.taskId, below('4'));
    const answer = await estate.tasks(link('1')).closeTask({ taskId: child.taskId, wait: true });
    expect(answer.tasks).toBe(2);
    const tree = await estate.tasks('auditor').listTaskTree({ taskId: root.taskId });
    const states = new Map(tree.nodes.map(({ taskId, state }) => [taskId, state]));
    expect(states.get(root.taskId)).toBe(TaskState.OPEN);
    expect(states.get(beside.taskId)).toBe(TaskState.OPEN);
    await estate.credentials(link('4')).issueCredential({ taskId: beside.taskId, ...access.reports });
  });

  test('reaches those below one that has ended already', async () => {
    const [root, child, grandchild] = await openLinks();
    const answer = await estate
      .credentials(link('3'))
      .issueCredential({ taskId: grandchild.taskId, ...access.warehouse });
    const login = loginOf(held(answer));
    // As if it had ended by itself, without what is below it.
    await rows(
      `UPDATE leasehold.tasks SET state = 'closed', closed_at = now(), settled_at = now(), close_cause = 'deadline'
       WHERE task_id = $1`,
      [child.taskId],
    );
    const closed = await estate.tasks('orchestrator').closeTask({ taskId: root.taskId, wait: true });
    expect(closed.tree.map(({ state }) => state)).toEqual([TaskState.CLOSED, TaskState.CLOSED, TaskState.CLOSED]);
    expect(closed.unsettledTasks).toBe(0);
    expect(await loginRefusal(login)).toBeDefined();
  });

  test('of which the deadline passes, or the opener falls silent, takes those below along', async () => {
    const soon = await openRoot(estate, 'link', { ttl: { seconds: 2n }, tools: [access.reports] });
    const silent = await openRoot(estate, 'link', { heartbeatInterval: { seconds: 1n }, tools: [access.reports] });
    const children = [
      await openChild(estate, link('1'), soon.taskId, below('2')),
      await openChild(estate, link('1'), silent.taskId, below('2')),
    ];
    await expect
      .poll(
        () =>
          rows('SELECT state FROM leasehold.tasks WHERE task_id = ANY($1)', [
            [...children, soon, silent].map(({ taskId }) => taskId),
          ]),
        { timeout: 15_000 },
      )
      .toEqual(Array.from({ length: 4 }, () => ({ state: 'closed' })));
    const cause = await rows('SELECT close_cause FROM leasehold.tasks WHERE task_id = $1', [children[1]!.taskId]);
    expect(cause).toEqual([{ close_cause: 'parent_closed' }]);
  });

  test('is for its opener, those who opened above it, and operators', async () => {
    const [root, child, grandchild] = await openLinks();
    for (const workload of [link('3'), link('9'), 'orchestrator-2']) {
      expect((await refusal(estate.tasks(workload).closeTask({ taskId: grandchild.taskId }))).reason).toMatch(
        /^(TASK_NOT_FOUND|ROLE_REQUIRED)$/,
      );
    }
    // The agent of the root opened the child, and so ends what the child handed on.
    await estate.tasks(link('1')).closeTask({ taskId: grandchild.taskId });
    await estate.tasks('orchestrator').closeTask({ taskId: child.taskId });
    await estate.tasks('operator').closeTask({ taskId: root.taskId });
  });
});

describe('a tree is seen', () => {
  test('in pages, by whoever has a hand in a task above, and by nobody else', async () => {
    const [root, child, grandchild] = await openLinks();
    const nodes: TaskNode[] = [];
    let pageToken = '';
    do {
      const page = await estate.tasks('orchestrator').listTaskTree({ taskId: root.taskId, pageSize: 2, pageToken });
      nodes.push(...page.nodes);
      pageToken = page.nextPageToken;
    } while (pageToken !== '');
    expect(nodes.map(({ taskId }) => taskId)).toEqual([root.taskId, child.taskId, grandchild.taskId]);
    const { tasks } = await estate.tasks(link('1')).listTasks({ rootTaskId: root.taskId });
    expect(tasks).toHaveLength(3);
    const children = await estate.tasks(link('1')).listTasks({ parentTaskId: root.taskId });
    expect(children.tasks.map(({ taskId }) => taskId)).toEqual([child.taskId]);
    await estate.tasks(link('1')).getTask({ taskId: grandchild.taskId });
    // From below nobody looks up.
    for (const call of [
      () => estate.tasks(link('3')).getTask({ taskId: child.taskId }),
      () => estate.tasks(link('3')).listTaskTree({ taskId: root.taskId }),
      () => estate.tasks(link('3')).listTasks({ rootTaskId: root.taskId }),
    ]) {
      expect(await refusal(call())).toMatchObject({ reason: 'TASK_NOT_FOUND' });
    }
  });
});

test(
  'a child that is opened during a close is refused or closed with it, on two replicas',
  { timeout: 120_000 },
  async () => {
    const seen = { opened: 0, refused: 0, issued: 0 };
    let next = 0;
    const round = async (index: number) => {
      const [near, far] = index % 2 === 0 ? estate.ports : ([...estate.ports].reverse() as [number, number]);
      const root = await openRoot(estate, 'link', { tools: [access.reports] }, near);
      const child = await openChild(estate, link('1'), root.taskId, below('2'));
      await sleep(index % 5);
      // Below the root and below a child of it, while the root is closed on the other replica.
      const opening = [
        estate.tasks(link('1'), near).openTask({
          parentTaskId: root.taskId,
          intent: 'race',
          ...below('3'),
          tools: [access.reports],
        }),
        estate.tasks(link('2'), far).openTask({
          parentTaskId: child.taskId,
          intent: 'race',
          ...below('3'),
          tools: [access.reports],
        }),
      ];
      const issuing = opening.map(async (call) => {
        const { task } = await call;
        return await estate.credentials(link('3'), far).issueCredential({ taskId: task!.taskId, ...access.reports });
      });
      const settled = Promise.all([Promise.allSettled(opening), Promise.allSettled(issuing)]);
      const closing = estate.tasks('orchestrator', far).closeTask({ taskId: root.taskId });
      const [results, issued] = await settled;
      await closing;
      for (const result of results) {
        if (result.status === 'fulfilled') seen.opened += 1;
        else {
          seen.refused += 1;
          expect(await refusal(Promise.reject(result.reason as Error))).toMatchObject({ reason: 'TASK_CLOSED' });
        }
      }
      for (const result of issued) {
        if (result.status === 'fulfilled') seen.issued += 1;
        else expect(await refusal(Promise.reject(result.reason as Error))).toMatchObject({ reason: 'TASK_CLOSED' });
      }
      expect(
        await rows(`SELECT task_id FROM leasehold.tasks WHERE root_task_id = $1 AND state = 'open'`, [root.taskId]),
      ).toEqual([]);
    };
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        while (next < 200) await round(next++);
      }),
    );
    expect(seen.opened).toBeGreaterThan(20);
    expect(seen.refused).toBeGreaterThan(20);
    // An event's number is taken while the task's row is locked: nothing was issued or opened behind a close.
    expect(
      await rows(
        `SELECT i.task_id FROM leasehold.audit_events i JOIN leasehold.audit_events c USING (tenant, task_id)
       WHERE c.kind = 'task.closed' AND i.kind IN ('lease.issued', 'task.opened') AND i.event_id > c.event_id`,
      ),
    ).toEqual([]);
    await expect
      .poll(
        () =>
          rows(`SELECT l.lease_id FROM leasehold.leases l JOIN leasehold.tasks t USING (tenant, task_id)
          WHERE t.state <> 'open' AND l.state <> 'settled'`),
        { timeout: 30_000 },
      )
      .toEqual([]);
  },
);
