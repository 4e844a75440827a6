import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { startProxy, type TestProxy } from '../support/proxy.ts';
import {
  callers,
  claimsOf,
  eventually,
  expectSettled,
  leasesOf,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  retrying,
  rolesOf,
  tokenOf,
  warehouseRead,
} from './support.ts';

/** Fault 3. Between agent and broker stands a network that loses answers. */
let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
let network: TestProxy;
let taskId: string;
let agent: ReturnType<typeof callers>['agent'];
beforeAll(async () => {
  estate = await createEstate('lost');
  broker = await startInProcess(estate);
  network = await startProxy('127.0.0.1', estate.httpPort);
  agent = callers(estate, network.port).agent;
});
afterAll(async () => {
  await network?.close();
  await broker?.stop();
  await estate?.remove();
});
beforeEach(async () => {
  taskId = await openTask(estate);
});

const active = async () => (await leasesOf(estate, taskId)).filter((lease) => lease['state'] === 'active');

/** Makes the call, waits until the broker has done it, and gives the caller nothing. */
async function loseTheAnswer(call: (options: { signal: AbortSignal }) => Promise<unknown>, done: () => Promise<void>) {
  await network.mode('mute');
  const gone = new AbortController();
  const lost = refusalOf(call({ signal: gone.signal }));
  await eventually(done);
  gone.abort();
  expect((await lost).reason).toBe('');
  await network.mode('pass');
}

test('an agent whose answer was lost gets the same token by the same request_id', async () => {
  const request = { requestId: crypto.randomUUID(), taskId, ...reportsRead };
  await loseTheAnswer(
    (options) => agent.issueCredential(request, options),
    async () => expect(await active()).toHaveLength(1),
  );
  const [first, second] = [await agent.issueCredential(request), await agent.issueCredential(request)];
  const [lease] = await leasesOf(estate, taskId);
  const claims = claimsOf(tokenOf(first.credential));
  expect(claims).toEqual(claimsOf(tokenOf(second.credential)));
  expect(claims['jti']).toBe(lease!['lease_id']);
  expect(claims['exp']).toBe(Math.floor((lease!['expires_at'] as Date).getTime() / 1_000));
  expect(await leasesOf(estate, taskId)).toHaveLength(1);
});

test('an agent whose answer was lost gets the same login, with a password that works', async () => {
  const request = { requestId: crypto.randomUUID(), taskId, ...warehouseRead };
  await loseTheAnswer(
    (options) => agent.issueCredential(request, options),
    async () => expect(await active()).toHaveLength(1),
  );
  const { credential } = await agent.issueCredential(request);
  const leases = await leasesOf(estate, taskId);
  expect(leases).toHaveLength(1);
  expect(await rolesOf(estate, leases)).toEqual([loginOf(credential).username]);
  expect(await ordersSeenBy(loginOf(credential))).toBe(3);
});

test('an agent whose renewal was lost gets the renewed token by the same request_id', async () => {
  const { credential } = await agent.issueCredential({ taskId, ...reportsRead });
  const request = { requestId: crypto.randomUUID(), leaseId: credential!.lease!.leaseId };
  await loseTheAnswer(
    (options) => agent.renewCredential(request, options),
    async () => expect(await leasesOf(estate, taskId)).toHaveLength(2),
  );
  const [again, oncemore] = [await agent.renewCredential(request), await agent.renewCredential(request)];
  expect(claimsOf(tokenOf(again.credential))).toEqual(claimsOf(tokenOf(oncemore.credential)));
  const leases = await leasesOf(estate, taskId);
  expect(leases).toHaveLength(2);
  expect(leases.map((lease) => lease['settle_cause'])).toEqual(['superseded', null]);
  expect(again.credential!.lease).toMatchObject({
    leaseId: leases[1]!['lease_id'],
    renewedFromLeaseId: credential!.lease!.leaseId,
  });
});

test('an agent whose renewed login was lost gets that login, and the old one lives on until then', async () => {
  const { credential } = await agent.issueCredential({ taskId, ...warehouseRead });
  const request = { requestId: crypto.randomUUID(), leaseId: credential!.lease!.leaseId };
  await loseTheAnswer(
    (options) => agent.renewCredential(request, options),
    async () => expect(await active()).toHaveLength(2),
  );
  expect(await ordersSeenBy(loginOf(credential))).toBe(3);
  const renewed = await agent.renewCredential(request);
  const leases = await leasesOf(estate, taskId);
  expect(leases).toHaveLength(2);
  expect(loginOf(renewed.credential).username).toBe(String(leases[1]!['handle']).split('/')[1]);
  expect(await ordersSeenBy(loginOf(renewed.credential))).toBe(3);
});

test.for([
  { kind: 'token', access: reportsRead },
  { kind: 'login', access: warehouseRead },
])('identical calls at the same time make one $kind', async ({ access }) => {
  const request = { requestId: crypto.randomUUID(), taskId, ...access };
  const answers = await Promise.all(
    Array.from({ length: 6 }, () => retrying(() => agent.issueCredential(request), ['IN_PROGRESS'])),
  );
  const leases = await leasesOf(estate, taskId);
  expect(leases).toHaveLength(1);
  expect(new Set(answers.map(({ credential }) => credential!.lease!.leaseId))).toEqual(
    new Set([leases[0]!['lease_id']]),
  );
  if (access === reportsRead) {
    const claims = answers.map(({ credential }) => claimsOf(tokenOf(credential)));
    for (const other of claims) expect(other).toEqual(claims[0]);
    return;
  }
  // Each answer replaces the password; the one that was made last works.
  const works = await Promise.all(
    answers.map(({ credential }) =>
      ordersSeenBy(loginOf(credential)).then(
        (count) => count === 3,
        () => false,
      ),
    ),
  );
  expect(works.filter(Boolean)).toHaveLength(1);
  expect(await rolesOf(estate, leases)).toHaveLength(1);
});

test('identical renewals at the same time make one successor', async () => {
  const { credential } = await agent.issueCredential({ taskId, ...reportsRead });
  const request = { requestId: crypto.randomUUID(), leaseId: credential!.lease!.leaseId };
  const answers = await Promise.all(
    Array.from({ length: 6 }, () => retrying(() => agent.renewCredential(request), ['IN_PROGRESS'])),
  );
  expect(new Set(answers.map((answer) => answer.credential!.lease!.leaseId)).size).toBe(1);
  expect(await leasesOf(estate, taskId)).toHaveLength(2);
});

test('a request_id that was used for something else is refused', async () => {
  const requestId = crypto.randomUUID();
  await agent.issueCredential({ requestId, taskId, ...reportsRead });
  const refusal = await refusalOf(agent.issueCredential({ requestId, taskId, ...warehouseRead }));
  expect(refusal).toMatchObject({ code: 'AlreadyExists', reason: 'REQUEST_ID_REUSED' });
  expect((await leasesOf(estate, taskId)).map((lease) => lease['tool'])).toEqual(['reports']);
});

test('a retry after the close gets nothing', async () => {
  const request = { requestId: crypto.randomUUID(), taskId, ...warehouseRead };
  await agent.issueCredential(request);
  await callers(estate).orchestrator.closeTask({ taskId, wait: true });
  const refusal = await refusalOf(agent.issueCredential(request));
  expect(['TASK_CLOSED', 'LEASE_ENDED']).toContain(refusal.reason);
  await expectSettled(estate, taskId);
});
