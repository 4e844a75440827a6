import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { DescService } from '@bufbuild/protobuf';
import { createClient, type Client, type Interceptor } from '@connectrpc/connect';
import { createConnectTransport } from '@connectrpc/connect-node';
import pg from 'pg';
import { afterAll, beforeAll, expect, inject, it } from 'vitest';
import { startDev, type Dev } from '../../src/dev/dev.ts';
import { findVault } from '../../src/dev/vault-binary.ts';
import { TaskState, Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import { CredentialService, type PostgresLogin } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { TaskService } from '../../src/gen/leasehold/v1/task_service_pb.js';
import { asSuperuser } from '../support/postgres.ts';
import { describeVault } from '../support/vault.ts';

function clientOf<S extends DescService>(dev: Dev, service: S, name: string): Client<S> {
  const authorize: Interceptor = (next) => async (request) => {
    request.header.set('authorization', `Bearer ${await readFile(dev.tokens[name]!, 'utf8')}`);
    return await next(request);
  };
  const transport = createConnectTransport({ baseUrl: dev.httpUrl, httpVersion: '1.1', interceptors: [authorize] });
  return createClient(service, transport);
}

async function connects({ host, port, database, username, password }: PostgresLogin): Promise<boolean> {
  const client = new pg.Client({ host, port, database, user: username, password });
  try {
    await client.connect();
    return true;
  } catch {
    return false;
  } finally {
    await client.end();
  }
}

describeVault('leasehold dev --vault', () => {
  const suffix = randomBytes(3).toString('hex');
  const names = { database: `dev_${suffix}`, target: `devw_${suffix}` };
  let dir: string;

  const start = (withVault: boolean) => {
    const found = findVault(process.env);
    if ('missing' in found) throw new Error(found.missing);
    const vault = withVault ? { vault: { binary: found.binary } } : {};
    return startDev({ dir, superuserUrl: inject('postgresUrl'), ...names, ...vault, write: () => undefined });
  };
  /** A task whose login Vault makes, opened, used and closed. */
  const useLedger = async (dev: Dev) => {
    const [tasks, credentials] = [
      clientOf(dev, TaskService, 'orchestrator'),
      clientOf(dev, CredentialService, 'analyst'),
    ];
    const tools = [{ tool: 'ledger', tier: Tier.READ }];
    const { task } = await tasks.openTask({ requestId: crypto.randomUUID(), intent: 'look', agent: 'analyst', tools });
    const { taskId } = task!;
    const { credential } = await credentials.issueCredential({ requestId: crypto.randomUUID(), taskId, ...tools[0]! });
    const login = credential!.material.value as PostgresLogin;
    expect(login.username).toMatch(new RegExp(`^v-${names.target}-[a-z0-9]{12}-read-`));
    expect(await connects(login)).toBe(true);
    const closed = await tasks.closeTask({ requestId: crypto.randomUUID(), taskId, justification: 'done', wait: true });
    expect(closed.task?.state).toBe(TaskState.CLOSED);
    expect(await connects(login)).toBe(false);
  };

  beforeAll(async () => {
    dir = await mkdtemp(path.join(tmpdir(), 'leasehold-dev-vault-'));
  });
  afterAll(async () => {
    await asSuperuser(inject('postgresUrl'), async (client) => {
      for (const name of Object.values(names)) await client.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
      for (const role of [`${names.database}_app`, `${names.target}_leasehold`, `${names.target}_vault`]) {
        await client.query(`DROP ROLE IF EXISTS ${role}`);
      }
    });
    await rm(dir, { recursive: true, force: true });
  });

  it('issues logins that Vault makes, and does so again after a restart of both', async () => {
    const first = await start(true);
    await useLedger(first).finally(() => first.stop());
    const second = await start(true);
    await useLedger(second).finally(() => second.stop());
  });

  it('starts without Vault on the same folder, and takes the tool away that needed it', async () => {
    const dev = await start(false);
    await dev.stop();
    expect(existsSync(path.join(dir, 'policy', 'vault.yaml'))).toBe(false);
  });
});
