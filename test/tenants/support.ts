import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import path from 'node:path';
import type { DescService } from '@bufbuild/protobuf';
import type { Client } from '@connectrpc/connect';
import { parse, stringify } from 'yaml';
import { openDevTrustDomain } from '../../src/dev/trust-domain.ts';
import { startInProcess, type TestEstate } from '../support/broker.ts';
import { clientWith, parties, prepareEstate, type Parties } from '../e2e/support.ts';

/** The trust domain of the tenant `acme`. */
export const domain = 'acme.leasehold.test';

export interface TwoTenants {
  estate: TestEstate;
  /** Who is who in `default`. */
  ours: Parties;
  /** A token of a workload of acme. */
  acmeToken(workload: string): Promise<string>;
  /** A client as a workload of acme. */
  acme<S extends DescService>(service: S, workload: string): Promise<Client<S>>;
  log: string[];
  stop(): Promise<void>;
}

export interface TwoTenantsOptions {
  /** Further policy documents of both tenants. */
  policies?: string[];
  /** Sections of the configuration, and what tenant acme has besides. */
  sections?: Record<string, object>;
  acme?: object;
}

/**
 * Two tenants on one broker: `default`, which is the estate as all tests have it, and `acme`, with a trust domain, a policy
 * and people of its own. Agents and tools have the same names in both.
 */
export async function serveTwoTenants(label: string, options: TwoTenantsOptions = {}): Promise<TwoTenants> {
  const estate = await prepareEstate(label);
  const acme = await openDevTrustDomain(path.join(estate.dir, 'acme-trust-domain'), domain);
  const policyDir = path.join(estate.dir, 'acme-policy');
  await mkdir(policyDir);
  for (const file of options.policies ?? []) await cp(file, path.join(estate.policyDir, path.basename(file)));
  const further = (options.policies ?? []).map((file) => path.basename(file));
  for (const file of ['agents.yaml', 'analyst.yaml', 'tools.yaml', ...further]) {
    const text = await readFile(path.join(estate.policyDir, file), 'utf8');
    await writeFile(path.join(policyDir, file), text.replaceAll('dev.leasehold.test', domain));
  }
  // The warehouse is not this tenant's: its tools have no database login.
  const tools = await readFile(path.join(policyDir, 'tools.yaml'), 'utf8');
  await writeFile(path.join(policyDir, 'tools.yaml'), tools.slice(0, tools.indexOf('\n---\n')));
  const rules = await readFile(path.join(policyDir, 'analyst.yaml'), 'utf8');
  await writeFile(
    path.join(policyDir, 'analyst.yaml'),
    rules.slice(0, rules.indexOf('    # `task.context`')).replace('tools: [reports, warehouse]', 'tools: [reports]'),
  );
  const config = parse(await readFile(estate.configFile, 'utf8')) as Record<string, object> & {
    attestation: { trustDomains: object[] };
  };
  config.attestation.trustDomains.push({ name: domain, tenant: 'acme', bundle: { file: acme.bundlePath } });
  const roles = ['orchestrator', 'operator', 'auditor', 'approver', 'resource_server', 'signal_source'];
  config['tenants'] = {
    acme: {
      policy: { directory: policyDir },
      access: roles.map((role) => ({ workloads: [`spiffe://${domain}/${role}`], roles: [role] })),
      ...options.acme,
    },
  };
  for (const [name, section] of Object.entries(options.sections ?? {})) {
    config[name] = { ...config[name], ...section };
  }
  await writeFile(estate.configFile, stringify(config));
  const broker = await startInProcess(estate);
  const acmeToken = (workload: string) =>
    acme.mint({ workload: `spiffe://${domain}/${workload}`, audience: 'leasehold', ttl: 3_600_000 });
  return {
    estate,
    ours: parties(estate),
    acmeToken,
    acme: async (service, workload) => clientWith(service, estate.httpPort, await acmeToken(workload)),
    log: broker.log,
    stop: async () => {
      await broker.stop(500);
      await estate.remove();
    },
  };
}
