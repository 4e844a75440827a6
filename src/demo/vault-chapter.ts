import type pg from 'pg';
import { TaskState, Tier } from '../gen/leasehold/v1/common_pb.js';
import type { PostgresLogin } from '../gen/leasehold/v1/credential_service_pb.js';
import type { VaultServer } from '../dev/vault-server.ts';
import { connect, expiry, lockedOut } from './hands.ts';
import type { Cast } from './story.ts';
import { insist, type Teller } from './teller.ts';

/** A second task, whose database login is made by Vault, under a lease of a token that belongs to the task alone. */
export async function tellVaultChapter(
  teller: Teller,
  { orchestrator, agent }: Pick<Cast, 'orchestrator' | 'agent'>,
  vault: VaultServer,
): Promise<void> {
  const leases = () => leasesOf(vault, 'database/creds/read');
  let taskId = '';
  let login: PostgresLogin;
  let session: pg.Client;
  await teller.step(
    'vault-issue-login',
    "In a second task Vault's database engine makes the login; the agent never sees a Vault token, and really reads.",
    async () => {
      const { task } = await orchestrator.openTask({
        requestId: crypto.randomUUID(),
        intent: 'Check the ledger',
        agent: 'analyst',
        tools: [{ tool: 'ledger', tier: Tier.READ }],
      });
      taskId = task!.taskId;
      const { credential } = await agent.issueCredential({
        requestId: crypto.randomUUID(),
        taskId,
        tool: 'ledger',
        tier: Tier.READ,
        justification: 'ledger check',
      });
      insist(credential?.material.case === 'postgresLogin', 'a database login');
      login = credential.material.value;
      session = await connect(login);
      const { rows } = await session.query<{ n: string }>('SELECT count(*) AS n FROM orders');
      insist((await leases()) === 1, 'Vault holds one lease');
      return {
        vault: vault.address,
        lease: credential.lease!.leaseId,
        login: login.username,
        expires: expiry(credential.lease!),
        read: `${rows[0]!.n} orders`,
      };
    },
  );
  await teller.step(
    'vault-close',
    'Closing the task ends its token at Vault, and with it the login: gone from the database, the open session too.',
    async () => {
      const closed = await orchestrator.closeTask({
        requestId: crypto.randomUUID(),
        taskId,
        justification: 'done',
        wait: true,
      });
      insist(closed.task?.state === TaskState.CLOSED, `state closed, got ${TaskState[closed.task?.state ?? 0]}`);
      const out = await lockedOut(session, login);
      insist((await leases()) === 0, 'Vault holds no lease any more');
      return { ...out, 'vault leases': 0 };
    },
  );
}

/** What Vault itself says that it holds. */
async function leasesOf(vault: VaultServer, path: string): Promise<number> {
  const answer = await vault.request({ method: 'LIST', path: `sys/leases/lookup/${path}/`, token: vault.rootToken });
  if (answer.status === 404) return 0;
  const keys = (answer.json['data'] as { keys?: unknown[] } | undefined)?.keys;
  if (answer.status !== 200 || keys === undefined) throw new Error(`Vault does not list its leases: ${answer.status}`);
  return keys.length;
}
