import { createHmac, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { refusal, sql, type Parties } from '../e2e/support.ts';
import { domain, serveTwoTenants, type TwoTenants } from './support.ts';

interface Delivery {
  headers: IncomingHttpHeaders;
  body: string;
}

/** A real receiver; while `hold` is set it answers nobody. */
async function receiver() {
  const deliveries: Delivery[] = [];
  const held: ServerResponse[] = [];
  const state = { hold: false };
  const server = createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk));
    request.on('end', () => {
      deliveries.push({ headers: request.headers, body });
      if (state.hold) held.push(response);
      else response.writeHead(204).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`,
    deliveries,
    state,
    release: () => {
      state.hold = false;
      for (const response of held.splice(0)) response.writeHead(204).end();
    },
    stop: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

type Receiver = Awaited<ReturnType<typeof receiver>>;

const look = { tool: 'vault-door', tier: Tier.READ };
const turn = { tool: 'vault-door', tier: Tier.WRITE };
const secrets = { default: randomBytes(32), acme: randomBytes(32) };
let two: TwoTenants;
let hooks: { default: Receiver; acme: Receiver };
let dir: string;

beforeAll(async () => {
  dir = await mkdtemp(path.join(tmpdir(), 'leasehold-tenant-hooks-'));
  hooks = { default: await receiver(), acme: await receiver() };
  const endpoint = async (tenant: 'default' | 'acme') => {
    const secretFile = path.join(dir, tenant);
    await writeFile(secretFile, `whsec_${secrets[tenant].toString('base64')}\n`, { mode: 0o600 });
    // The same name in both: names are a tenant's own too.
    return { name: 'chat', url: hooks[tenant].url, secretFile, timeout: '30s' };
  };
  two = await serveTwoTenants('tenanthooks', {
    policies: [path.join(import.meta.dirname, '../approvals/fixtures/approvals.yaml')],
    sections: {
      approvals: {
        webhooks: [await endpoint('default')],
        groups: { 'door-owners': ['spiffe://dev.leasehold.test/approver/olga'] },
      },
    },
    acme: { webhooks: [await endpoint('acme')], groups: { 'door-owners': [`spiffe://${domain}/approver`] } },
  });
});
afterAll(async () => {
  for (const hook of Object.values(hooks ?? {})) hook.release();
  await two?.stop();
  for (const hook of Object.values(hooks ?? {})) await hook.stop();
  if (dir !== undefined) await rm(dir, { recursive: true, force: true });
});

/** Asks for what people have to allow; the task that it was asked for. */
async function asked(tasks: Parties['tasks'], agent: Parties['agent'], what = look): Promise<string> {
  const { task } = await tasks.openTask({ intent: 'a look', agent: 'analyst', tools: [what] });
  const { reason } = await refusal(agent.issueCredential({ taskId: task!.taskId, ...what }));
  expect(reason).toBe('APPROVAL_REQUIRED');
  return task!.taskId;
}

const askedByAcme = async (what = look) =>
  asked(await two.acme(TaskService, 'orchestrator'), await two.acme(CredentialService, 'agent/analyst'), what);

const about = ({ deliveries }: Receiver, taskId: string) => deliveries.filter(({ body }) => body.includes(taskId));

function signedWith({ headers, body }: Delivery, secret: Uint8Array): boolean {
  const signed = `${headers['webhook-id'] as string}.${headers['webhook-timestamp'] as string}.${body}`;
  return headers['webhook-signature'] === `v1,${createHmac('sha256', secret).update(signed).digest('base64')}`;
}

test('messages of a tenant go to its own endpoints, signed with its own secret, and nowhere else', async () => {
  const [mine, theirs] = [await asked(two.ours.tasks, two.ours.agent), await askedByAcme()];
  for (const [tenant, taskId] of [
    ['default', mine],
    ['acme', theirs],
  ] as const) {
    await expect.poll(() => about(hooks[tenant], taskId).length, { timeout: 10_000 }).toBe(1);
    const [delivery] = about(hooks[tenant], taskId);
    expect(signedWith(delivery!, secrets[tenant])).toBe(true);
  }
  const waiting = await sql(
    two.estate.databaseUrl,
    'SELECT tenant, endpoint FROM leasehold.notifications ORDER BY tenant DESC',
  );
  expect(waiting).toEqual([
    { tenant: 'default', endpoint: 'chat' },
    { tenant: 'acme', endpoint: 'acme/chat' },
  ]);
  expect(about(hooks.default, theirs)).toEqual([]);
  expect(about(hooks.acme, mine)).toEqual([]);
});

test('an endpoint that does not answer holds up no other tenant’s', async () => {
  hooks.acme.state.hold = true;
  const theirs = await askedByAcme(turn);
  await expect.poll(() => about(hooks.acme, theirs).length, { timeout: 10_000 }).toBe(1);
  const mine = await asked(two.ours.tasks, two.ours.agent, turn);
  await expect.poll(() => about(hooks.default, mine).length, { timeout: 10_000 }).toBe(1);
  hooks.acme.release();
});
