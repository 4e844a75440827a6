import { afterAll, beforeAll, expect, inject } from 'vitest';
import { prepareSampleTarget } from '../../../src/dev/sample-target.ts';
import type { ToolTier } from '../../../src/domain/policy.ts';
import type { Material } from '../../../src/domain/provider.ts';
import { createVaultProvider, type VaultProvider } from '../../../src/providers/vault/provider.ts';
import type { VaultServer } from '../../../src/providers/vault/server.ts';
import { asSuperuser } from '../../support/postgres.ts';
import { createBrokerDatabase, openTestStorage, type BrokerDatabase } from '../../support/storage.ts';
import { describeVault, startVault, type TestVault } from '../../support/vault.ts';
import { prepareLeasehold } from '../../vault/estate.ts';
import { targetProviderSuite } from '../provider-suite.ts';
import { login } from './target-cluster.ts';

type Login = Extract<Material, { kind: 'postgres_login' }>;

/** Against a real Vault, whose database engine makes logins on a real PostgreSQL. */
describeVault('with a real Vault', () => {
  const target = `vc_${process.pid}`;
  let vault: TestVault;
  let database: BrokerDatabase;
  let storage: Awaited<ReturnType<typeof openTestStorage>>;
  let provider: VaultProvider;
  let away: VaultProvider;
  let tier: ToolTier;

  beforeAll(async () => {
    const sample = await prepareSampleTarget(inject('postgresUrl'), target);
    [vault, database] = await Promise.all([startVault(), createBrokerDatabase('vaultc')]);
    storage = await openTestStorage(database);
    const { roleId, secretId } = await prepareLeasehold(vault);
    await vault.database({ target });
    const open = (server: Partial<VaultServer>) =>
      createVaultProvider({
        servers: {
          main: {
            address: vault.address,
            tls: () => ({}),
            login: { method: 'approle', mount: 'approle', roleId: () => roleId, secretId: () => secretId },
            tokenRole: 'leasehold-task',
            connections: 8,
            issueTimeout: 5_000,
            settleTimeout: 5_000,
            ...server,
          },
        },
        store: storage.taskTokens,
        clock: { now: Date.now },
        random: Math.random,
        mark: 'abc123',
        events: {
          loggedIn: () => undefined,
          loginFailed: () => undefined,
          tokenLost: () => undefined,
          tokenFailed: () => undefined,
        },
      });
    provider = await open({});
    away = await open({ address: 'http://127.0.0.1:1' });
    const { host, port } = sample;
    tier = {
      provider: 'vault',
      revocation: 'immediate',
      ttl: { min: 1_000, default: 300_000, max: 900_000 },
      actions: [],
      options: {
        server: 'main',
        mount: 'database',
        path: 'creds/read',
        login: { host, port, database: target, sslmode: 'disable' },
      },
    };
  });
  afterAll(async () => {
    await provider?.close();
    await storage?.close();
    await database?.drop();
    await vault?.remove();
    await asSuperuser(inject('postgresUrl'), async (client) => {
      await client.query(`DROP DATABASE IF EXISTS ${target} WITH (FORCE)`);
      await client.query(`DROP ROLE IF EXISTS ${target}_leasehold`);
    });
  });

  targetProviderSuite(
    'vault',
    async () => ({
      provider,
      tier,
      accepted: async (material) => {
        try {
          await (await login(material as Login)).end();
          return true;
        } catch (error) {
          expect(['28P01', '28000']).toContain((error as { code?: string }).code);
          return false;
        }
      },
      unreachable: () => away,
    }),
    { reissue: 'anew', knowsTheEnd: false },
  );
});
