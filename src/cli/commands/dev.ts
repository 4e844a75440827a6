import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { define, withJson } from '../define.ts';
import { runUntilSignal } from '../signals.ts';
import { startup } from '../startup.ts';
import { count } from '../values.ts';

interface Options {
  dir: string;
  grpcPort: number;
  httpPort: number;
  vault?: boolean;
  vaultPort: number;
  json?: boolean;
}

export function dev(parent: Command): void {
  const command = define(parent, {
    name: 'dev',
    summary: 'Run a whole Leasehold on this machine, for development only',
    description:
      'Starts a real PostgreSQL, a trust domain, a sample target database, a first policy and the broker, all below one ' +
      'folder that is kept between runs. For development only: one node, nothing backed up, and whoever reads the folder ' +
      'holds every key. Set LEASEHOLD_DEV_DATABASE_URL (a superuser) to use a PostgreSQL of your own. With --vault a Vault or ' +
      'OpenBao server runs beside it, whose database engine makes the logins of the tool `ledger`: the one that ' +
      'LEASEHOLD_VAULT names, or that `npm run vault` has built, or that is on the PATH.',
    examples: [
      ['leasehold dev', 'everything below .leasehold'],
      ['leasehold dev --vault', 'with a Vault that makes logins for the tool `ledger`'],
      ['leasehold dev --dir /tmp/try --http-port 8080 --grpc-port 8070', 'elsewhere, on other ports'],
    ],
  });
  command
    .option('--dir <folder>', 'where everything is kept', '.leasehold')
    .option('--grpc-port <port>', 'port of the gRPC door, on loopback', count(65_535), 7070)
    .option('--http-port <port>', 'port of the HTTP door, on loopback', count(65_535), 7080);
  command
    .option('--vault', 'start a Vault server too')
    .option('--vault-port <port>', 'port of the Vault server, on loopback', count(65_535), 7082);
  withJson(command).action(async (options: Options) => {
    const superuserUrl = process.env.LEASEHOLD_DEV_DATABASE_URL;
    const running = await startup(async () => {
      const { startDev } = await import('../../dev/dev.ts');
      const vault = options.vault === true ? { binary: await vaultBinary(), port: options.vaultPort } : undefined;
      return await startDev({
        dir: options.dir,
        grpcPort: options.grpcPort,
        httpPort: options.httpPort,
        progress: (step) => process.stderr.write(`leasehold: ${step}\n`),
        ...(superuserUrl === undefined || superuserUrl === '' ? {} : { superuserUrl }),
        ...(vault && { vault }),
      });
    });
    const { httpUrl, configFile, policyDir, tokens } = running;
    const vault = running.vault?.address;
    const grpc = `127.0.0.1:${running.broker.grpcPort}`;
    if (options.json === true) {
      process.stdout.write(
        `${JSON.stringify({ http: httpUrl, grpc, config: configFile, policy: policyDir, tokens, vault })}\n`,
      );
    } else {
      const { fields, line, toned } = await import('../output.ts');
      line(toned('For development only: every key of this broker lies in one folder.', 'warn'));
      fields([
        ['http', httpUrl],
        ['grpc', grpc],
        ...(vault === undefined ? [] : [['vault', `${vault} (root token and key in ${options.dir}/vault)`] as const]),
        ['configuration', configFile],
        ['policy', `${policyDir} (an edit counts at once)`],
        ...Object.entries(tokens).map(([name, file]) => [`token of ${name}`, file] as const),
      ]);
      line('serving; stop with Ctrl-C');
    }
    await runUntilSignal(() => running.stop());
  });
}

async function vaultBinary(): Promise<string> {
  const { findVault } = await import('../../dev/vault-binary.ts');
  const found = findVault(process.env, { onPath: true });
  if ('missing' in found) throw new CliError('usage', found.missing, { reason: 'VAULT_MISSING' });
  return found.binary;
}
