import type { Command } from 'commander';
import { defaultTenant } from '../../config/tenant.ts';
import { configInvalid, startup, withConfig, type ConfigOptions } from '../startup.ts';
import { define, withJson } from '../define.ts';

interface Options extends ConfigOptions {
  files: boolean;
  json?: boolean;
}

export function configCheck(parent: Command): void {
  const command = define(parent, {
    name: 'check',
    summary: 'Check the configuration and the policy, without starting anything',
    description:
      'Reads the configuration, the policy directory, and what both name, and lists every mistake with file, line and ' +
      'column. Exits with 9 when there is one.',
    examples: [
      ['leasehold config check', 'leasehold.yaml of this folder'],
      ['leasehold config check --config policies/leasehold.yaml --no-files --json', 'in the CI of a policy repository'],
    ],
  });
  withConfig(command).option('--no-files', 'do not look for the secrets and certificates that it names');
  withJson(command).action(async (options: Options) => {
    const result = await startup(async () => {
      const { checkConfig } = await import('../../config/check-config.ts');
      return await checkConfig({ path: options.config, env: process.env, files: options.files });
    });
    if (!result.ok) throw configInvalid(result.issues);
    const { config, revisions } = result;
    for (const { name, policy } of config.tenants) {
      const revision = revisions.get(name);
      const tenant = name === defaultTenant ? {} : { tenant: name };
      const of = name === defaultTenant ? config.file : `${config.file}, tenant ${name},`;
      let line: string;
      if (options.json === true) {
        const found =
          revision === undefined
            ? { policySource: 'database' }
            : { policyRevision: revision.digest, agents: revision.agents.size, tools: revision.tools.size };
        line = JSON.stringify({ config: config.file, ...tenant, ...found });
      } else if (policy.source === 'database' || revision === undefined) {
        line = `${of} is valid; policy is applied with \`leasehold policy apply\``;
      } else {
        line = `${of} and ${policy.directory} are valid: ${revision.agents.size} agents, ${revision.tools.size} tools, revision ${revision.digest}`;
      }
      process.stdout.write(`${line}\n`);
    }
  });
}
