import type { Command } from 'commander';
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
    const { config, revision } = result;
    if (config.policy.source === 'database' || revision === undefined) {
      process.stdout.write(
        options.json === true
          ? `${JSON.stringify({ config: config.file, policySource: 'database' })}\n`
          : `${config.file} is valid; policy is applied with \`leasehold policy apply\`\n`,
      );
      return;
    }
    if (options.json === true) {
      const counts = { agents: revision.agents.size, tools: revision.tools.size };
      process.stdout.write(`${JSON.stringify({ config: config.file, policyRevision: revision.digest, ...counts })}\n`);
      return;
    }
    process.stdout.write(
      `${config.file} and ${config.policy.directory} are valid: ${revision.agents.size} agents, ${revision.tools.size} tools, revision ${revision.digest}\n`,
    );
  });
}
